"""Which files are read, and what is said where none are."""

import glob
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from e2erag.extract import ReadError, read, read_report
from e2erag.extract.read import attempt, find


def write(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(found: list[Path | ReadError], folder: Path) -> list[str]:
    assert all(isinstance(item, Path) for item in found), found
    return [str(item.relative_to(folder)) for item in found if isinstance(item, Path)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Folders and files drawn at random (seed 0), some hidden, some of other kinds."""
    draw = random.Random(0)
    for _ in range(60):
        folders = [draw.choice(["a", "b", "[c]", ".d"]) for _ in range(draw.randrange(4))]
        name = draw.choice(["x", "y", ".z"]) + draw.choice([".pdf", ".PDF", ".bin", ""])
        write(tmp_path.joinpath("top", *folders, name))
    return tmp_path / "top"


@pytest.mark.parametrize(
    "pattern",
    ["*.pdf", "**", "**/*.pdf", "**/*", "*/**/x*", "**/a/*.pdf", "**/a/**/*.pdf", "**/**/x.*", "[[]c]/*", ".d/**/*.pdf",
     "**/.z*", "?/*/*.pdf", "a/**", "**/[[]c]/**/y*"],
)  # fmt: skip
def test_pattern_names_the_files_that_glob_finds(tree: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As absolute and as relative path, sorted."""
    monkeypatch.chdir(tree)
    for whole in (pattern, f"{tree}/{pattern}", f"./{pattern}"):
        theirs = {Path(name) for name in glob.glob(whole, recursive=True) if Path(name).is_file()}
        ours = list(find(whole))
        if theirs:
            assert ours == sorted(theirs)
        else:
            assert [type(item) for item in ours] == [ReadError]


def test_folder_gives_every_file_with_a_reader_sorted(tree: Path) -> None:
    """Those in hidden folders too; the suffix's case doesn't matter."""
    expected = sorted(path for path in tree.rglob("*") if path.suffix.lower() == ".pdf" and path.is_file())
    assert [path for path in find(tree) if isinstance(path, Path) and path.suffix.lower() == ".pdf"] == expected
    assert not [path for path in find(tree) if isinstance(path, Path) and path.suffix == ".bin"]


def test_what_a_folder_holds_of_other_kinds_is_counted(tmp_path: Path) -> None:
    """By suffix, in whatever case. What a pattern doesn't match nobody has asked for."""
    for name in ("a.txt", "b.doc", "c.DOC", "deep/d.xlsx", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    report = read_report(tmp_path, workers=0)
    assert report.skipped == {".doc": 2, ".xlsx": 1, "without suffix": 1}
    assert (report.read, report.failed, report.exit_code) == (1, [], 0)
    assert "skipped  | 4 files of other kinds: .doc (2), " in str(report)
    assert report.to_json()["skipped"] == report.skipped
    assert not read_report(f"{tmp_path}/*.txt", workers=0).skipped


def test_file_named_twice_comes_once(tree: Path) -> None:
    """By another path, through a link or in another pattern."""
    (tree / "link.pdf").symlink_to(write(tree / "one.pdf"))
    assert list(find([tree / "one.pdf", tree / "a" / ".." / "one.pdf", tree / "link.pdf"])) == [tree / "one.pdf"]


def test_links_in_circles_end(tmp_path: Path) -> None:
    """Two links to the folder itself: followed blindly, `**` would list 2⁴⁰ folders."""
    write(tmp_path / "deep" / "a.pdf")
    for name in ("one", "two"):
        (tmp_path / "deep" / name).symlink_to(tmp_path)
    assert names(list(find(tmp_path)), tmp_path) == ["deep/a.pdf"]
    assert names(list(find(f"{tmp_path}/**/*.pdf")), tmp_path) == ["deep/a.pdf"]
    (tmp_path / "self.pdf").symlink_to(tmp_path / "self.pdf")
    file, error = find(tmp_path)
    assert names([file], tmp_path) == ["deep/a.pdf"]
    assert str(error).startswith(f"{tmp_path}/self.pdf: is a link to nothing")
    assert list(find(tmp_path / "self.pdf")) == [tmp_path / "self.pdf"]
    assert isinstance(attempt(tmp_path / "self.pdf"), ReadError)


def test_pattern_goes_through_links_to_folders(tmp_path: Path) -> None:
    """As glob does; a folder given as such keeps to itself."""
    write(tmp_path / "other" / "a.pdf")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to(tmp_path / "other")
    assert names(list(find(f"{tmp_path}/top/**/*.pdf")), tmp_path) == ["top/link/a.pdf"]
    assert [type(item) for item in find(tmp_path / "top")] == [ReadError]


def test_folder_that_cannot_be_listed_is_an_error_beside_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files would be missing from the corpus without a word."""
    write(tmp_path / "a.pdf")
    write(tmp_path / "shut" / "b.pdf")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for given in (tmp_path, f"{tmp_path}/**/*.pdf"):
        file, error = find(given)
        assert file == tmp_path / "a.pdf"
        assert str(error) == (
            f"{tmp_path}/shut: can't be listed (Permission denied): give yourself the right to read it, or leave it out"
        )


def test_names_of_any_bytes_are_found_and_refused_in_one_line(tmp_path: Path) -> None:
    """Line ends, and bytes that are no UTF-8, are allowed in names."""
    for name in (b"\xff\xfe.pdf", b"two\nlines.pdf", "é 文.pdf".encode()):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"x")
    found = list(find(tmp_path))
    assert len(found) == 3
    assert all(isinstance(attempt(path), ReadError) for path in found if isinstance(path, Path))


def test_an_empty_path_is_not_the_working_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is not set, say: an error in its place, and the other paths are read."""
    monkeypatch.chdir(tree)
    error, file = find(["", "one.pdf"])
    assert str(error).startswith(": is an empty path, which would be the whole working directory: name a file")
    assert file == Path("one.pdf")
    assert len(list(find(""))) == 1 < len(list(find(".")))
    with pytest.raises(ReadError, match="is an empty path"):
        read("")


@pytest.mark.parametrize("name", ["a\0b.pdf", "n" * 5000 + ".pdf", "a*\0.pdf"])
def test_name_that_cannot_be_is_an_error(name: str) -> None:
    """From `find` or from `read`, never another exception."""
    (item,) = find(name)
    assert isinstance(item if isinstance(item, ReadError) else attempt(item), ReadError)


def test_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    """Opening one blocks until somebody writes to it."""
    os.mkfifo(tmp_path / "a.pdf")
    with pytest.raises(ReadError, match="is a pipe or a device: save what it gives as a file first"):
        read(tmp_path / "a.pdf")
    assert [type(item) for item in find(tmp_path)] == [ReadError]


@pytest.mark.parametrize("pattern", ["", "/*", "/*.pdf", "/**/*.pdf", "/[ac]*.pdf"])
def test_what_is_no_file_is_named_in_the_report(tmp_path: Path, pattern: str) -> None:
    """A link to nothing and a pipe, in a folder and by a pattern, once each; of another kind they are counted."""
    write(tmp_path / "b.pdf")
    os.mkfifo(tmp_path / "a.pdf")
    (tmp_path / "c.pdf").symlink_to(tmp_path / "nothing.pdf")
    (tmp_path / "d").mkdir()
    report = read_report([f"{tmp_path}{pattern}"] * 2, workers=0)
    told = {Path(error.file).name: error.reason for error in report.failed}
    assert told.pop("b.pdf", "is not a PDF").startswith("is not a PDF")
    assert told == {
        "a.pdf": "is a pipe or a device: save what it gives as a file first",
        "c.pdf": "is a link to nothing: put the file where it points, or remove it",
    }
    assert len(report.failed) == 3 - (pattern == "/[ac]*.pdf")
    error = attempt(tmp_path / "c.pdf")
    assert isinstance(error, ReadError)
    assert error.reason == told["c.pdf"]


def test_reader_that_fails_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is none of ours becomes one; running out of memory stays what it is."""

    def fail(*_: object) -> None:
        raise KeyError("inside\nof it")

    module = sys.modules["e2erag.extract.read"]  # the package has the function under that name
    monkeypatch.setattr(module, "read_pdf", fail)
    monkeypatch.setattr(module, "READERS", {".pdf": fail})
    error = attempt(write(tmp_path / "a.pdf"))
    assert isinstance(error, ReadError)
    assert error.reason.startswith("made its reader fail (")
    assert error.reason.endswith("): report this with the file, or leave it out")

    def starve(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "read", starve)
    with pytest.raises(MemoryError):
        attempt(tmp_path / "a.pdf")


def test_one_path_is_read(tmp_path: Path) -> None:
    """A pattern is none, and an engine there is not is told whatever the file is."""
    (tmp_path / "a.txt").write_text("seats 4")
    with pytest.raises(ReadError, match=r"no such file: check the path, or let read_many look for what the pattern"):
        read(tmp_path / "*.pdf")
    with pytest.raises(ValueError, match="engine is one of"):
        read(tmp_path / "a.txt", engine="acrobat")


WRONG_PATHS = """
import os, sys
from e2erag.extract import read
(entry,) = os.scandir(sys.argv[1])
print(read(entry).texts)
for wrong in (None, 3, ["a.txt"], b"a.txt"):
    try:
        read(wrong)
    except TypeError as error:
        print(error)
"""


def test_what_has_a_path_is_read_and_what_is_none_is_told(tmp_path: Path) -> None:
    """In a process of its own, where types aren't checked before."""
    (tmp_path / "a.txt").write_text("seats 4")
    run = subprocess.run([sys.executable, "-c", WRONG_PATHS, tmp_path], capture_output=True, text=True, check=True)
    first, *errors = run.stdout.splitlines()
    assert first == "('seats 4',)"
    assert len(errors) == 4
    assert all(re.match(r"read takes the path of one file, got .*; read_many takes several", e) for e in errors)
