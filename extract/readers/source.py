"""What readers share before they read: a file's bytes, its characters, the package that knows its format."""

import codecs
import glob
import hashlib
import importlib
import importlib.metadata
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from e2erag.extract.document import ReadError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_KINDS = {
    b"%PDF-": "a PDF: name it .pdf",
    b"PK\x03\x04": "a ZIP archive: unpack it, or name it .docx if it is one",
    b"\xd0\xcf\x11\xe0": "an Office file of the kind before 2007: save it as .docx",
    b"\x89PNG": "a PNG image: name it .png",
    b"\xff\xd8\xff": "a JPEG image: name it .jpg",
    b"\x1f\x8b": "compressed (gzip): unpack it",
}
WRONG = 0.1  # of the bytes that aren't ASCII, the share that may be broken in UTF-8
FOREIGN = 0.5  # of what is shown, the share that isn't ASCII: more is no language that Windows-1252 is for
_TAG = re.compile("<[^<>]*>")

_BLOCK = 1 << 20
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def read_bytes(path: str | Path) -> bytes:
    """The file's bytes, or the reason why there are none."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        pattern = ", or let read_many look for what the pattern names" if glob.has_magic(str(path)) else ""
        raise ReadError(path, f"no such file: check the path{pattern}") from None
    except IsADirectoryError:
        raise ReadError(path, "is a folder: read_many reads the files in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ReadError(path, f"could not be opened: {getattr(error, 'strerror', None) or error}") from None
    if not data:
        raise ReadError(path, "is empty (0 bytes): fetch or export it again")
    return data


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hex, read in blocks of 1 MiB so that a large file needs no memory.

    `e2erag.artefact` has the same once more: a stage doesn't import what stands above it, and that file loads alone.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def decoded(path: str | Path, data: bytes, declared: str = "") -> str:
    """The characters of a text file, with line ends as `\\n`.

    In this order: a byte order mark; UTF-16 without one, where every second byte is zero; the encoding that the file
    declares, if its bytes agree; UTF-8, even if a few of its characters are broken; Windows-1252, which is what files
    that say Latin-1 are written in, unless accents and signs would be many so.

    Raises:
        ReadError: the file is not text, or in an encoding that can't be told.
    """
    text, told = _characters(data, declared)
    pdf = data.startswith(b"%PDF-")  # which may be all letters
    if pdf or len(_CONTROL.findall(text[:65536])) > 0.01 * min(len(text), 65536):
        kind = next(
            (kind for magic, kind in _KINDS.items() if data.startswith(magic)), "binary data: convert it to text"
        )
        raise ReadError(path, f"is not text but {kind}")
    if not told:
        raise ReadError(path, "is text in an encoding that it doesn't tell: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _characters(data: bytes, declared: str) -> tuple[str, bool]:
    """The characters, and whether their encoding is more than a guess that gives signs and accents."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace"), True
    head = data[:4096]
    if head.count(0) > 0.3 * len(head):
        for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
            if zeros.count(0) > 0.7 * len(zeros):
                return data.decode(encoding, "replace"), True
    name = _known(declared)
    for encoding in [name, "utf-8"] if name else ["utf-8"]:
        try:
            return data.decode(encoding), True
        except UnicodeDecodeError:
            continue
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") <= WRONG * sum(byte >= 0x80 for byte in data):
        return text, True
    text = data.decode("cp1252", "replace")
    shown = "".join(_TAG.sub("", text[:65536]).split())
    return text, sum(not char.isascii() for char in shown) <= FOREIGN * len(shown)


def _known(declared: str) -> str:
    """The codec of a declared encoding, "" if there is none; UTF-16 can't be declared in bytes that are ASCII."""
    try:
        name = codecs.lookup(declared.strip()).name if declared.strip().isascii() and declared.strip() else ""
    except (LookupError, ValueError):
        return ""
    text = name and not name.startswith(("utf-16", "utf-32")) and codecs.lookup(name)._is_text_encoding
    return {"iso8859-1": "cp1252", "ascii": "cp1252"}.get(name, name) if text else ""


def package(path: str | Path, module: str, name: str) -> ModuleType:
    """Imports the module of a package that a format needs.

    Raises:
        ReadError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ReadError(path, f"needs the package {name} ({error}): pip install {name}") from None


def starved(log: Iterable[Any]) -> bool:
    """Whether a log of lxml's says that memory ran out, which it raises as broken syntax ("unknown error")."""
    return any(entry.type_name == "ERR_NO_MEMORY" for entry in log)


def version(name: str, ours: int) -> str:
    """What `Document.reader` says: the package, its version, and that of what is made of its output here."""
    return f"{name} {importlib.metadata.version(name)} · {ours}"
