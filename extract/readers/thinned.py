"""A page's drawing instructions without the paths that fill those of a map. Nothing here knows pypdf."""

import re

# What a string begins or ends with, which may hold others, or parts of a path, one after another.
_NUMBER = rb"[-+.\d]{1,20}\s{1,9}"
_DRAWN = re.compile(
    rb"(\\.|[()])|(?<!\S)(?:(?:(?:%b){2}[ml]|(?:%b){4}(?:[vy]|re)|(?:%b){6}c|h)\s{1,9}){1,999}" % ((_NUMBER,) * 3),
    re.DOTALL,
)


def without_paths(data: bytes) -> bytes:
    """Drawing instructions without lines, curves and rectangles; what looks like one within a string stays."""
    depth = 0

    def put(found: re.Match[bytes]) -> bytes:
        nonlocal depth
        mark = found[1]
        if mark is None:
            return found[0] if depth else b" "
        depth = max(depth + {b"(": 1, b")": -1}.get(mark, 0), 0)
        return mark

    return _DRAWN.sub(put, data)
