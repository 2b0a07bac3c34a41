"""Reads files: one with `read`, folders and patterns of them with `read_many`."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from e2erag.extract.document import Document, ReadError
from e2erag.extract.readers import READERS, read_pdf


def read(path: str | Path) -> Document:
    """One file as a `Document`; boxes and sizes are in points. A file without a suffix is judged by its first bytes.

    Raises:
        ReadError: the file can't be read, or is of a kind that has no reader; the reason is in the message.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in READERS or not path.is_file() or _is_pdf(path):  # what is missing or a folder, read_pdf explains
        return READERS.get(suffix, read_pdf)(path)
    kinds = ", ".join(sorted(READERS))
    raise ReadError(path, f"is a {suffix or 'file without suffix'}: only {kinds} can be read, convert it")


def _is_pdf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"%PDF-" in file.read(1024)
    except OSError:
        return False


def read_many(paths: str | Path | Iterable[str | Path]) -> tuple[list[Document], list[ReadError]]:
    """Every readable file among `paths`, and the errors of those that are not: one bad file doesn't stop a corpus.

    `paths` is a file, a folder (its PDFs, those in folders below it too), a glob pattern (`**` goes through folders),
    or an iterable of these. Files come sorted within each, and a file that is named twice is read once.
    """
    documents: list[Document] = []
    errors: list[ReadError] = []
    for found in tqdm(list(find(paths)), desc="read", unit="file", disable=None):
        if isinstance(found, ReadError):
            errors.append(found)
            continue
        try:
            documents.append(read(found))
        except ReadError as error:
            errors.append(error)
    return documents, errors


def find(paths: str | Path | Iterable[str | Path]) -> Iterator[Path | ReadError]:
    """The files that `paths` names, as `read_many` reads them; an error in the place of what names none."""
    seen: set[Path] = set()
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        files = list(_expand(path))
        if not files:
            kinds = ", ".join(sorted(READERS))
            yield ReadError(path, f"matches no file: check the pattern, or that the folder holds {kinds} files")
        for file in files:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _expand(path: str | Path) -> Iterable[Path]:
    folder = Path(path)
    if folder.is_dir():
        return sorted(file for file in folder.rglob("*") if file.suffix.lower() in READERS and file.is_file())
    if glob.has_magic(str(path)) and not folder.exists():  # a file's own name may have brackets in it
        return sorted(Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
    return [folder]
