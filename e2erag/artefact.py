"""The one way anything is written to disk: whole or not at all, with a manifest that says what belongs to it.

A folder is written in four steps:

1. into a hidden sibling, `.{name}.partial-{pid}-{token}`, so that both lie on one file system;
2. hashed, listed in `manifest.json` and flushed to the disk;
3. the old folder, if there is one, steps aside (`.{name}.aside-…`) and the new one takes its name;
4. the old one is removed.

A process killed before step 3 leaves the old folder and a partial; killed between the two renames of step 3 it leaves
no folder but a whole old one aside, which the next `check_folder` or `write_folder` puts back.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

MANIFEST = "manifest.json"
FORMAT_VERSION = 1

_BLOCK = 1 << 20
_DAY = 24 * 3600.0
_TRIES = 100
# What file managers drop into any folder they show. Nothing reads these, so they make nothing wrong.
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
# A process id means something on its own machine (or in its own container) only, so the name carries the host too.
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
_T = TypeVar("_T")
_AGAIN = "Save it again or fetch it afresh."


class ManifestError(ValueError):
    """A folder isn't what its manifest says. The text names the file, the rule that it breaks and the way out."""


@contextmanager
def write_folder(target: str | Path, *, first_wins: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well it becomes `target`, all of it at once.

    If the block raises, Ctrl-C included, `target` stays as it was and nothing else is left. An existing `target` is
    replaced if it's empty or was written by this function; with `first_wins` it's kept instead and the new one is
    dropped, which suits a cache that several processes fill with the same thing.

    Raises:
        ManifestError: the block wrote a symbolic link, a device or a `manifest.json` of its own.
        FileExistsError, NotADirectoryError, PermissionError: as of `check_target`, before the block begins.
    """
    target = Path(os.path.realpath(target))  # a link stays a link: what it points to is replaced
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(target, "partial")
    partial.mkdir()
    try:
        yield partial
        _seal(partial)
        _put_in_place(partial, target, first_wins)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(target: str | Path) -> None:
    """Refuse what `write_folder` would, so that nobody trains for an hour to be refused.

    Raises:
        FileExistsError: `target` is a file, or a folder holding something that `write_folder` didn't write.
        NotADirectoryError, PermissionError: as of `check_place`.
    """
    target = Path(os.path.realpath(target))
    _refuse_place(target.parent, target)
    _recover(target)
    _steady(target, lambda: _refuse_foreign(target))


def check_place(folder: str | Path) -> None:
    """Refuse a folder in which nothing could be written, whether it is there already or would have to be made.

    Raises:
        NotADirectoryError: it is a file, or lies below one.
        PermissionError: one may not write there.
    """
    folder = Path(os.path.realpath(folder))
    _refuse_place(folder, folder)


def _refuse_place(folder: Path, wanted: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        what = "a folder was to be written there" if there == wanted else f"{wanted} was to be written below it"
        raise NotADirectoryError(f"{there} is a file, and {what}. Choose another place.")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{there} may not be written to. Choose another place, or give yourself the right.")


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write one file, text as UTF-8, so that a reader sees the old content or the new one and never a part.

    Raises:
        IsADirectoryError: `path` is a folder.
        NotADirectoryError, PermissionError: as of `check_place`, for the folder it is in.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file was to be written there: choose another name.")
    _refuse_place(path.parent, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _recover(path)
    partial = _sibling(path, "partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        if path.exists():
            shutil.copymode(path, partial)  # a file kept private stays private
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def check_folder(folder: str | Path, *, hashes: bool = True) -> dict[str, Any]:
    """Return the manifest of `folder` once every file in it has been found to be what the manifest says.

    `hashes=False` compares sizes only: it takes no time, finds what a full disk or a broken copy leaves, and misses
    an edit. A folder that a killed process had moved aside is put back first.

    Symbolic links are refused rather than followed: what they point to can change, or lie outside the folder, without
    the folder changing. (`folder` itself may be a link: that one is the caller's choice.)

    Raises:
        ManifestError: the folder or its manifest is missing, the manifest can't be read or is of a newer format, or a
            file is missing, changed, not listed, a link, or listed outside the folder.
    """
    folder = Path(os.path.realpath(folder))
    _recover(folder)
    return _steady(folder, lambda: _check(folder, hashes))


# --- the manifest -----------------------------------------------------------------------------------------------------


def _check(folder: Path, hashes: bool) -> dict[str, Any]:
    _wait_for_swap(folder)
    if not folder.is_dir():
        raise ManifestError(f"{folder} is not a folder, and a saved folder was expected there. Check the path.")
    manifest = _read_manifest(folder)
    found = set(_files(folder)) - {MANIFEST}
    for name, entry in manifest["files"].items():
        _check_file(folder, name, entry, found, hashes)
    for name in sorted(found - set(manifest["files"])):
        raise ManifestError(
            f"{folder / name} is not listed in {MANIFEST}, and a saved folder holds only what was saved. "
            f"Move it elsewhere. If you didn't put it there: {_AGAIN.lower()}"
        )
    return manifest


def _seal(folder: Path) -> None:
    """List and hash every file of the folder in its manifest, then flush files and folders to the disk."""
    names = _files(folder)
    if MANIFEST in names:
        raise ManifestError(f"{MANIFEST} is the name of the list of files: give the file written there another name.")
    manifest = {
        "written_by": "e2erag",
        "format_version": FORMAT_VERSION,
        "e2erag_version": _own_version(),
        "files": {
            name: {"sha256": sha256(folder / name), "size": (folder / name).stat().st_size} for name in sorted(names)
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for parent, _, files in os.walk(folder, topdown=False):
        for path in [Path(parent, file) for file in files] + [Path(parent)]:
            _flush(path)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise ManifestError(
            f"{path} is missing: this folder wasn't saved by e2erag, or was copied in part. "
            f"Check the path. If it's right: {_AGAIN.lower()}"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ManifestError(f"{path} can't be read as JSON ({error}). {_AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("written_by") != "e2erag":
        raise ManifestError(f"{path} is another program's: its written_by must be 'e2erag'. Check the path.")
    format_version = manifest.get("format_version")
    if isinstance(format_version, int) and format_version > FORMAT_VERSION:
        raise ManifestError(
            f"{path} has format version {format_version}, and this e2erag reads up to {FORMAT_VERSION}. "
            f"Install e2erag {manifest.get('e2erag_version')} or newer."
        )
    if format_version != FORMAT_VERSION or not _is_file_list(manifest.get("files")):
        raise ManifestError(f"{path} must hold a format_version and, for each file, sha256 and size. {_AGAIN}")
    return manifest


def _is_file_list(files: object) -> bool:
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and isinstance(entry.get("size"), int)
        for entry in files.values()
    )


def _check_file(folder: Path, name: str, entry: dict[str, Any], found: set[str], hashes: bool) -> None:
    if not _stays_inside(name):
        raise ManifestError(
            f"{folder / MANIFEST} lists {name!r}, and a listed path must stay inside the folder. "
            "Somebody edited it: fetch the folder afresh from where you trust it."
        )
    if name not in found:
        raise ManifestError(f"{folder / name} is missing, and {MANIFEST} lists it. {_AGAIN}")
    size = (folder / name).stat().st_size
    if size != entry["size"]:
        raise ManifestError(f"{folder / name} has {size} bytes, and {MANIFEST} says {entry['size']}. {_AGAIN}")
    if hashes and sha256(folder / name) != entry["sha256"]:
        raise ManifestError(f"{folder / name} has changed: its sha256 isn't the one in {MANIFEST}. {_AGAIN}")


def _stays_inside(name: str) -> bool:
    """Whether a listed path is relative and without "..", read the POSIX way and the Windows way."""
    paths = (PurePosixPath(name), PureWindowsPath(name))
    return bool(name) and not any(path.anchor or ".." in path.parts for path in paths)


def _files(folder: Path) -> list[str]:
    """The relative POSIX path of every file below `folder`; anything but files and folders is refused."""
    names = []
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in folders + files):
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise ManifestError(
                    f"{path} is {kind}, and a saved folder holds plain files only. Put a copy of the file there."
                )
            if stat.S_ISREG(mode) and path.name not in _LITTER:
                names.append(path.relative_to(folder).as_posix())
    return names


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hex, read in blocks of 1 MiB so that a large file needs no memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _own_version() -> str:
    try:
        return version("e2erag")
    except PackageNotFoundError:  # run from a checkout that isn't installed
        return "0"


# --- putting it in place ----------------------------------------------------------------------------------------------


def _steady(path: Path, look: Callable[[], _T]) -> _T:
    """The answer of `look`, asked again when it failed because another process replaced `path` meanwhile."""
    for _ in range(_TRIES):
        before = _identity(path)
        try:
            return look()
        except (OSError, ManifestError) as error:
            # What is said to exist and doesn't, came and went in between.
            gone = before is None and isinstance(error, FileExistsError)
            if _identity(path) == before and not gone:
                raise
    return look()


def _identity(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_ctime_ns  # the time too, as a removed folder's number is given out again
    return None


def _refuse_foreign(target: Path) -> None:
    """Refuse to replace what this module didn't write: it may be somebody's only copy."""
    way_out = "Choose another folder, or move this one away first."
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file, and a folder was to be written there. {way_out}")
    if not _is_filled(target):
        return
    try:
        listed = _read_manifest(target)["files"]
        extra = sorted(set(_files(target)) - set(listed) - {MANIFEST})
    except ManifestError as error:
        raise FileExistsError(f"{target} is not empty and not a folder that e2erag saved: {error} {way_out}") from error
    if extra:
        raise FileExistsError(f"{target} holds {extra[0]}, which e2erag didn't save there and would lose. {way_out}")


def _is_filled(folder: Path) -> bool:
    try:
        return bool(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _put_in_place(partial: Path, target: Path, first_wins: bool) -> None:
    """Give `partial` the name `target`; whoever holds that name steps aside first and is removed last."""
    for _ in range(_TRIES):
        if first_wins and _is_filled(target):
            return
        _steady(target, lambda: _refuse_foreign(target))  # again, for the block may have taken days
        aside = _sibling(target, "aside")
        placed = False
        try:
            with suppress(FileNotFoundError):
                os.rename(target, aside)
            os.rename(partial, target)
            placed = True
            _flush(target.parent)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another process took the name between our two renames: step aside for it too.
        finally:  # Ctrl-C between the two renames comes through here as well
            if placed:  # the name may be free for a moment, while another process does the same
                _discard(aside, target)
            else:
                _settle(aside, target)
    raise FileExistsError(f"{target} was taken by another process {_TRIES} times over. Let one process write it.")


def _put_back(aside: Path, target: Path) -> None:
    """Give an old folder its name back, unless a new one holds it."""
    with suppress(OSError):  # there's none, or a new one was faster
        if not os.path.lexists(target):
            os.rename(aside, target)


def _settle(aside: Path, target: Path) -> None:
    """Give an old folder its name back or, where a new one holds it, remove the old one: one of both is done."""
    for _ in range(_TRIES):
        if not os.path.lexists(aside):
            return
        _put_back(aside, target)
        if os.path.lexists(target):
            _discard(aside, target)


def _discard(aside: Path, target: Path) -> None:
    """Remove an old folder that a new one has replaced.

    It takes a name that recovery won't restore first: if we're killed half of it may be left.
    """
    if os.path.lexists(aside):
        doomed = _sibling(target, "partial")
        with suppress(OSError):  # another process was faster, or may not write here: it disturbs nobody
            os.rename(aside, doomed)
            shutil.rmtree(doomed)


# --- what dead processes left -----------------------------------------------------------------------------------------


def _sibling(target: Path, role: str) -> Path:
    return target.parent / f".{target.name}.{role}-{os.getpid()}-{_HOST}{secrets.token_hex(4)}"


def _recover(target: Path) -> None:
    """Put back a folder that a killed process left aside, and remove whatever else dead processes left."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(partial|aside)-(\d+)-([0-9a-f]{{6}})[0-9a-f]{{8}}")
    try:
        found = [pattern.fullmatch(name) for name in sorted(os.listdir(target.parent))]
    except OSError:  # no such folder, or one that may not be listed: then there's nothing to do here
        return
    left = [(target.parent / match[0], match) for match in found if match]
    for path, match in left:
        # A wrong guess does no harm to an aside: its owner finds the name taken, and steps aside again.
        if match[1] == "aside" and _is_dead(int(match[2]), match[3], unknown=True):
            _settle(path, target)
    for path, match in left:
        if match[1] == "partial" and _is_dead(int(match[2]), match[3], unknown=_is_old(path)):
            _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # not ours, read-only, or another process was faster: it disturbs nobody
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_old(path: Path) -> bool:
    with suppress(OSError):
        return time.time() - path.lstat().st_mtime > _DAY
    return False


def _is_dead(pid: int, host: str, unknown: bool) -> bool:
    """Whether a process has ended; `unknown` is the answer where it can't be asked."""
    if host != _HOST or os.name == "nt":  # on Windows the question below would stop the process
        return unknown
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it runs, as somebody else
        return False
    return False


def _wait_for_swap(folder: Path) -> None:
    """Give a living process between its two renames a second to finish."""
    prefix = f".{folder.name}.aside-"
    for _ in range(100):
        if folder.exists() or not folder.parent.is_dir():
            return
        if not any(name.startswith(prefix) for name in os.listdir(folder.parent)):
            return
        time.sleep(0.01)


def _flush(path: Path) -> None:
    """Force a file or a folder to the disk: without it a rename can outlive a power cut that its content doesn't."""
    if os.name == "nt":  # Windows flushes only what is open for writing, and no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
