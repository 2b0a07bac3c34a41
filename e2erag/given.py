"""Files and documents that a system is given to index: read, each content once, without those it has already."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from e2erag.extract import Document, ReadError, read_many
from e2erag.extract.read import find
from e2erag.extract.readers.source import sha256


class Change(NamedTuple):
    """What `RAG.add` did with the files it was given: how many of each.

    Attributes:
        added: new ones, those included that replaced another.
        replaced: documents that an added one of the same file name replaced.
        unchanged: whose bytes are indexed already; they were not read.
        failed: that could not be read; each was warned of once.
    """

    added: int
    replaced: int
    unchanged: int
    failed: list[ReadError]


class Given(NamedTuple):
    """What is to be indexed of what was given.

    Attributes:
        documents: each content once.
        unchanged: how many are indexed already.
        failed: files that could not be read.
    """

    documents: list[Document]
    unchanged: int
    failed: list[ReadError]


def take(files: str | Path | Iterable[str | Path | Document], indexed: Mapping[str, str], **reading: Any) -> Given:
    """Read what is given, but for what is indexed: by its name with the same bytes, or under another name only.

    Args:
        indexed: of each document that is indexed, its name and the SHA-256 of its file.
        reading: options of `e2erag.extract.stream`.

    Raises:
        ValueError: two contents have one name, by which a document is replaced and deleted.
    """
    contents = set(indexed.values())

    def known(name: str, content: str) -> bool:
        return indexed[name] == content if name in indexed else content in contents

    given = [files] if isinstance(files, (str, Path)) else list(files)
    documents = [item for item in given if isinstance(item, Document)]
    paths: list[str | Path] = [item for item in given if not isinstance(item, Document)]
    new = [document for document in documents if not known(document.file, document.sha256)]
    unchanged = len(documents) - len(new)
    if indexed:  # else nothing is known, and hashing would be for nothing
        named, paths = list(find(paths)), []
        for path in named:
            try:
                same = not isinstance(path, ReadError) and known(str(path), sha256(path))
            except OSError:
                same = False
            unchanged += same
            if not same:
                paths.append(path.file if isinstance(path, ReadError) else path)  # what is wrong, reading explains
    read, failed = read_many(paths, **reading)
    _check_names([*documents, *read])
    return Given(_distinct([*new, *read]), unchanged, failed)


def warn_skipped(failed: Sequence[ReadError]) -> None:
    """Warn of each, at the line that called the caller."""
    for error in failed:
        warnings.warn(f"skipped {error}", stacklevel=3)


def _check_names(documents: Iterable[Document]) -> None:
    content: dict[str, str] = {}
    for document in documents:
        if content.setdefault(document.file, document.sha256) != document.sha256:
            raise ValueError(
                f"each document has a name of its own, and two different ones are called {document.file!r}: rename one "
                "(dataclasses.replace(document, file=…)), or leave out the older"
            )


def _distinct(documents: Sequence[Document]) -> list[Document]:
    """Each content once: a second copy would only share the first one's probability."""
    seen: dict[str, str] = {}
    kept = []
    for document in documents:
        if document.sha256 in seen:
            warnings.warn(f"{document.file} is the same file as {seen[document.sha256]}: indexed once", stacklevel=4)
        else:
            seen[document.sha256] = document.file
            kept.append(document)
    return kept
