"""What was read before: a folder with one file per document, found by what the file's bytes are and what reads them.

Nothing in it is believed without its seal: a damaged, shortened, renamed or foreign entry is as good as none, and is
written anew. (The seal finds accidents. Who may write to the folder can forge it: keep it as private as the files.)
"""

import contextlib
import hashlib
import json
import os
import secrets
import time
import warnings
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from e2erag.extract import pack, readers
from e2erag.extract.document import Document, ReadError
from e2erag.extract.readers.pdf import engine_or_default

_DAY = 24 * 3600.0
_DOCUMENT, _REASON = b"D", b"E"
# With another version of one of these the same bytes may read differently, or be read at all.
_READ_WITH = ("pypdf", "pypdfium2", "lxml", "markdown-it-py", "python-docx", "pillow", "rapidocr", "onnxruntime")


@lru_cache
def reader_id(suffix: str, engine: str | None) -> str:
    """What would read a file of this suffix: the readers' source, and the versions of what they use."""
    source = hashlib.sha256()
    for path in sorted(Path(readers.__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    used = [f"{name} {_version(name)}" for name in ("e2erag", *_READ_WITH)]
    return "\n".join([suffix, engine or "", engine_or_default(engine), str(pack.FORMAT), source.hexdigest(), *used])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


class Cache:
    """Documents, and reasons why files can't be read, in a folder that any number of processes may share."""

    def __init__(self, folder: str | Path) -> None:
        """Raises OSError where the folder can't be made or is a file."""
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except (FileExistsError, NotADirectoryError) as error:
            raise type(error)(
                f"{folder} is a file or lies below one, and what was read is kept in a folder: name another as cache"
            ) from None
        self._warned = False
        for left in self.folder.glob(".partial-*"):  # by a process that was killed
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _DAY:
                    left.unlink()

    def key(self, digest: str, path: Path, engine: str | None) -> str:
        """The name of the entry for a file with this sha256."""
        return hashlib.sha256(f"{digest}\n{reader_id(path.suffix.lower(), engine)}".encode()).hexdigest()

    def get(self, key: str, path: Path) -> Document | ReadError | None:
        """What was read, as of a file at `path`; None if there is no entry that holds what was put there."""
        try:
            data = self._file(key).read_bytes()
        except OSError:
            return None
        seal, body = data[:64], data[64:]
        if seal != _seal(key, body):
            return None
        try:
            if body[:1] == _REASON:
                return ReadError(path, str(json.loads(body[1:])))
            return pack.unpack(body[1:], str(path))
        except (ValueError, LookupError, TypeError):
            return None

    def put(self, key: str, found: bytes | str) -> None:
        """Keep a packed document, or a reason; a disk that takes nothing is warned of once."""
        body = _DOCUMENT + found if isinstance(found, bytes) else _REASON + json.dumps(found).encode()
        file, partial = self._file(key), self.folder / f".partial-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            file.parent.mkdir(exist_ok=True, mode=0o700)
            partial.write_bytes(_seal(key, body) + body)
            os.replace(partial, file)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            if not self._warned:
                warnings.warn(f"{self.folder}: what is read can't be cached there ({error.strerror})", stacklevel=2)
            self._warned = True

    def size(self) -> tuple[int, int]:
        """Number of entries and their bytes; nothing is ever removed, other than by whoever deletes the folder."""
        sizes = []
        for file in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(OSError):
                sizes.append(file.stat().st_size)
        return len(sizes), sum(sizes)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]


def _seal(key: str, body: bytes) -> bytes:
    sha256 = hashlib.sha256(key.encode())
    sha256.update(body)
    return sha256.hexdigest().encode()
