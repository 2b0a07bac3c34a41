"""Reads one file with `read`, and finds the files of folders and patterns with `find`; `stream` reads those."""

import errno
import fnmatch
import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from e2erag.extract.document import Document, ReadError
from e2erag.extract.readers import READERS, read_pdf
from e2erag.extract.readers.pdf import engine_or_default
from e2erag.extract.readers.shown import short

_EMPTY = "is an empty path, which would be the whole working directory: name a file, or '.' if that is meant"


def read(path: str | Path, engine: str | None = None) -> Document:
    """One file as a `Document`; boxes and sizes are in points. A file without a suffix is judged by its first bytes.

    `engine` says what reads PDFs, "pypdf" or "pypdfium2"; None is the faster one that is installed. It reads in this
    process, without limits: a file made to be endless is endless here. `stream` and `read_many` can bound it.

    Raises:
        ReadError: the file can't be read, or is of a kind that has no reader; the reason is in the message.
        ValueError, ImportError: there is no such engine, or it is not installed.
        TypeError: `path` is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"read takes the path of one file, got {path!r:.80}; read_many takes several, folders and patterns"
        )
    if path == "":
        raise ReadError(path, _EMPTY)
    path = Path(path)
    if reason := _no_file(path):
        raise ReadError(path, reason)
    suffix = path.suffix.lower()
    if suffix in READERS or not path.is_file() or _is_pdf(path):  # what is missing or a folder, read_pdf explains
        reader = READERS.get(suffix, read_pdf)
        if reader is read_pdf:
            return read_pdf(path, engine)
        engine_or_default(engine)  # a wrong name is one whatever the file is
        return reader(path)
    kinds = ", ".join(sorted(READERS))
    raise ReadError(path, f"is a {suffix or 'file without suffix'}: only {kinds} can be read, convert it")


def attempt(path: Path, engine: str | None = None) -> Document | ReadError:
    """`read`, and every way it can fail but for want of memory as a `ReadError`, an error of the reader's own too."""
    try:
        return read(path, engine)
    except ReadError as error:
        return error
    except MemoryError:
        raise
    except Exception as error:
        return ReadError(path, f"made its reader fail ({short(error)}): report this with the file, or leave it out")


def _is_pdf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"%PDF-" in file.read(1024)
    except OSError:
        return False


def find(paths: str | Path | Iterable[str | Path], skipped: Counter[str] | None = None) -> Iterator[Path | ReadError]:
    """The files that `paths` names, as `stream` reads them; an error in the place of what names none.

    `paths` is a file, a folder (the files in it that can be read, those in folders below it and hidden ones too), a
    glob pattern (`**` goes through folders; hidden files only where it says so, as a shell has it), or an iterable of
    these. Files come sorted within each, and a file that is named twice comes once. A folder that can't be listed, a
    link to nothing and a pipe are errors after the files that were found. What a folder holds of other kinds is counted
    in `skipped`, by suffix.
    """
    seen: set[str] = set()
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        if path == "":
            yield ReadError(path, _EMPTY)
            continue
        files, errors = _expand(path, Counter() if skipped is None else skipped)
        if not files and not errors:
            kinds = ", ".join(sorted(READERS))
            yield ReadError(path, f"matches no file: check the pattern, or that the folder holds {kinds} files")
        for file in files:
            real = _real(file)
            if real not in seen:
                seen.add(real)
                yield file
        for error in errors:
            if error.file not in seen:
                seen.add(error.file)
                yield error


def _real(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # a NUL in the name: `read` says so
        return str(path)


def _expand(path: str | Path, skipped: Counter[str]) -> tuple[list[Path], list[ReadError]]:
    folder, errors = Path(path), list[ReadError]()
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, ValueError):  # a name that is too long, or no name
        return [folder], []
    if is_folder:
        names = [Path(top, name) for top, files in _folders(str(folder), False, errors) for name in files]
        known = [file for file in names if file.suffix.lower() in READERS]
        skipped.update(file.suffix.lower() or "without suffix" for file in names if file.suffix.lower() not in READERS)
        # Editors lock files with hidden links to nothing.
        known = [file for file in known if not file.name.startswith(".") or os.path.exists(file)]
        return _files(known, errors), errors
    if glob.has_magic(str(path)) and not exists:  # a file's own name may have brackets in it
        return _files({Path(name) for name in _matches(str(path), errors)}, errors), errors
    return [folder], []


def _files(paths: Iterable[Path], errors: list[ReadError]) -> list[Path]:
    """The files among the paths, sorted; what is neither that nor a folder is an error."""
    found = []
    for path in sorted(paths):
        if reason := _no_file(path):
            errors.append(ReadError(path, reason))
        elif not os.path.isdir(path):
            found.append(path)
    return found


def _no_file(path: Path) -> str:
    """Why there is nothing to read under a name that is there, and neither a file's nor a folder's; else ""."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        link = getattr(error, "errno", None) in (errno.ENOENT, errno.ELOOP) and path.is_symlink()
        return "is a link to nothing: put the file where it points, or remove it" if link else ""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    return "is a pipe or a device: save what it gives as a file first"


def _matches(pattern: str, errors: list[ReadError]) -> Iterator[str]:
    """What `glob.glob(pattern, recursive=True)` finds, but every folder is walked once: links may go in circles."""
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    at = parts.index("**")
    above = os.sep.join([*parts[:at], ""])  # ends with a separator, so that it matches folders only
    while parts[at : at + 1] == ["**"]:
        at += 1
    rest = os.sep.join(parts[at:])
    for top in glob.iglob(above) if above else [""]:
        for folder, files in _folders(top or os.curdir, True, errors):
            inside = folder if top else folder[2:]  # without the "./"
            if os.sep in rest:
                yield from _matches(os.path.join(glob.escape(inside), rest), errors)
            else:
                shown = [name for name in files if rest.startswith(".") or not name.startswith(".")]
                yield from (os.path.join(inside, name) for name in fnmatch.filter(shown, rest or "*"))


def _folders(top: str, follow: bool, errors: list[ReadError]) -> Iterator[tuple[str, list[str]]]:
    """`top` and the folders below it, each with the names of its files; with `follow`, links and no hidden folders."""

    def unlisted(error: OSError) -> None:
        reason = f"can't be listed ({error.strerror or error}): give yourself the right to read it, or leave it out"
        errors.append(ReadError(error.filename or top, reason))

    seen: set[tuple[int, int]] = set()
    for folder, below, files in os.walk(top, onerror=unlisted, followlinks=follow):
        if follow:
            try:
                there = os.stat(folder)
            except OSError as error:
                unlisted(error)
                continue
            if (there.st_dev, there.st_ino) in seen:
                below.clear()
                continue
            seen.add((there.st_dev, there.st_ino))
            below[:] = [name for name in below if not name.startswith(".")]
        below.sort()
        yield folder, files
