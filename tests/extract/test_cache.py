"""The cache of what was read before, and packed documents."""

import itertools
import os
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docx
import pytest
from pdf_files import drawn, huge, outcome, slow, some_files

from e2erag.extract import Box, Cell, Document, Page, ReadError, Unit, read, read_many, read_report, stream
from e2erag.extract import cache as cache_module
from e2erag.extract.pack import pack, unpack

STREAM = sys.modules["e2erag.extract.stream"]  # the package has the function under that name
NTSB = sorted((Path(__file__).parents[2] / "examples" / "ntsb").glob("*.pdf"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return some_files(tmp_path / "in")


@pytest.fixture
def no_reader(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on reading fails: what still comes is from the cache."""

    def fail(path: Path, engine: str | None) -> ReadError:
        return ReadError(path, "was not cached")

    return lambda: monkeypatch.setattr(STREAM, "attempt", fail)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_read_once_comes_from_the_cache(
    folder: Path, tmp_path: Path, workers: int, no_reader: Callable[[], None]
) -> None:
    """Documents and errors, equal to those read, at the path where the file is now."""
    read_before = [outcome(item) for item in stream(folder, workers=workers, cache=tmp_path / "cache")]
    no_reader()
    with stream(folder, workers=0, cache=tmp_path / "cache") as found:
        assert [outcome(item) for item in found] == read_before
    assert found.report.cached == 12
    folder = folder.rename(tmp_path / "moved")
    (folder / "0.pdf").rename(folder / "z.pdf")
    documents, errors = read_many(folder, workers=0, cache=tmp_path / "cache")
    assert [document.file for document in documents][-1] == str(folder / "z.pdf")
    assert documents[-1].units[0].text == "file 0"
    assert [Path(error.file).parent for error in errors] == [folder, folder]
    report = read_report(folder, workers=0, cache=tmp_path / "cache")
    assert (report.cached, report.cache_files) == (12, 12)
    assert report.cache_bytes == sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damaged(entry: bytes) -> Iterator[bytes]:
    yield from (b"", entry[:64], entry[:-1], entry + b" ", b"{}", b"null", b"[" * 100_000)
    for place in (0, 63, 64, 65, 100, len(entry) // 2, len(entry) - 1):
        yield entry[:place] + bytes([entry[place] ^ 1]) + entry[place + 1 :]


def test_damaged_entry_is_read_and_written_anew(tmp_path: Path) -> None:
    """Shortened, longer, replaced, or with one bit changed anywhere."""
    file, cache = drawn(tmp_path / "a.pdf", "one", "two"), tmp_path / "cache"
    (expected,) = read_many(file, cache=cache)[0]
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    for data in damaged(whole):
        entry.write_bytes(data)
        with stream(file, cache=cache) as found:
            assert list(found) == [expected]
        assert found.report.cached == 0
        assert entry.read_bytes() == whole


def test_entry_under_another_name_is_not_believed(tmp_path: Path) -> None:
    """Two whole entries that changed places: each file still reads as itself."""
    files, cache = [drawn(tmp_path / f"{n}.pdf", f"file {n}") for n in range(2)], tmp_path / "cache"
    read_many(files, cache=cache)
    one, two = entries(cache)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert [document.units[0].text for document in read_many(files, cache=cache)[0]] == ["file 0", "file 1"]


def test_sealed_nonsense_is_not_believed(tmp_path: Path) -> None:
    """An entry of a future version, say: right in its seal, and of another form."""
    file, cache = drawn(tmp_path / "a.pdf", "one"), tmp_path / "cache"
    (expected,) = read_many(file, cache=cache)[0]
    (entry,) = entries(cache)
    key, packed = entry.parent.name + entry.name, entry.read_bytes()[65:]
    for body in (b"", b"D{}", b"Dnull", b"D[]", b"D7", b"E[", b"X", b"D" + packed.replace(b'"one"', b'"one","two"')):
        entry.write_bytes(cache_module._seal(key, body) + body)
        assert read_many(file, cache=cache)[0] == [expected]


def test_changed_file_engine_or_reader_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry is found by the bytes, the kind and the reader; never by the path or the time."""
    file, cache = drawn(tmp_path / "a.pdf", "one"), tmp_path / "cache"
    times = os.stat(file)

    def cached(**options: object) -> int:
        report = read_report(file, cache=cache, **options)
        assert report.read == 1
        return report.cached

    assert [cached(), cached()] == [0, 1]
    assert [cached(engine="pypdf"), cached(engine="pypdf")] == [0, 1]
    drawn(file, "two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert [cached(), cached()] == [0, 1]
    monkeypatch.setattr(cache_module, "reader_id", lambda suffix, engine: "another version")
    assert [cached(), cached()] == [0, 1]


def test_reader_is_known_by_its_source_and_what_it_uses() -> None:
    """Suffix and engine make a difference, the order of calls none."""
    ids = {cache_module.reader_id(*pair) for pair in itertools.product([".pdf", ".html"], [None, "pypdf"])}
    assert len(ids) == 4
    assert all("pypdf " in reader and "e2erag " in reader for reader in ids)


@pytest.mark.parametrize("place", ["a.txt", "a.txt/x"])
def test_a_cache_is_a_folder(place: str, tmp_path: Path) -> None:
    """A file in its place or above it is told before anything is read."""
    (tmp_path / "a.txt").write_text("the pilot")
    with pytest.raises(OSError, match=r"is a file or lies below one, .* kept in a folder: name another"):
        stream(tmp_path / "a.txt", cache=tmp_path / place)


def test_reasons_that_may_pass_are_not_cached(tmp_path: Path) -> None:
    """A file that was too slow once may be read another time; a damaged one stays damaged."""
    file, cache = slow(tmp_path / "s.pdf"), tmp_path / "cache"
    assert read_report(file, cache=cache, engine="pypdf", seconds=0.1).exit_code == 1
    assert read_report(huge(tmp_path / "h.pdf"), cache=cache, memory=300 << 20).exit_code == 1
    assert read_report(tmp_path / "none.pdf", cache=cache).exit_code == 1
    assert entries(cache) == []


def test_a_parser_without_memory_is_no_broken_file(tmp_path: Path) -> None:
    """Three million elements, whose tree takes 360 MB: it may get more another time, so nothing is kept."""
    file, cache = tmp_path / "a.html", tmp_path / "cache"
    file.write_text("<p>words" + "<br>" * 3_000_000)
    documents, (error,) = read_many(file, cache=cache, memory=300 << 20)
    assert not documents
    assert error.reason == "needs more than 300 MB to be read: give it more (memory=…), or leave it out"
    assert entries(cache) == []


STARVED = r"""
import re, resource, sys
from pathlib import Path
import docx, lxml.etree
from e2erag.extract import read
used = int(re.search(r"VmData:\s*(\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (12 << 20),) * 2)
try:
    read(sys.argv[1])
except BaseException as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_that_a_parser_lacks_is_a_memory_error(tmp_path: Path) -> None:
    """12 MB more than what is imported: lxml calls it broken syntax, after what is really broken in the page."""
    (tmp_path / "a.html").write_text("<bogus></p>" + "<p>a paragraph</p>" * 60_000)
    made = docx.Document()
    body = "<w:p><w:r><w:t>a paragraph</w:t></w:r></w:p>" * 60_000
    made.save(tmp_path / "b.docx")
    with zipfile.ZipFile(tmp_path / "b.docx") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(tmp_path / "b.docx", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in parts.items():
            file.writestr(name, data.replace(b"<w:body>", b"<w:body>" + body.encode()))
    for name in ("a.html", "b.docx"):
        run = subprocess.run([sys.executable, "-c", STARVED, tmp_path / name], capture_output=True, text=True)
        assert run.stdout == "MemoryError\n", run


def test_cache_that_cannot_be_written_is_warned_of_once(folder: Path, tmp_path: Path) -> None:
    """And everything is read; a folder that can't be made is an error before that."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for n in range(256):
        (cache / f"{n:02x}").write_bytes(b"")
    with pytest.warns(UserWarning, match="cache: what is read can't be cached there") as caught:
        assert len(read_many(folder, workers=0, cache=cache)[0]) == 10
    assert len(caught) == 1
    assert not list(cache.glob(".partial*"))
    with pytest.raises(FileExistsError):
        stream(folder, cache=cache / "00")


def test_old_leavings_are_removed(tmp_path: Path) -> None:
    """What a killed process was writing, once it is a day old."""
    for name, age in (("old", 2 * 86400), ("new", 0)):
        (tmp_path / f".partial-{name}").write_bytes(b"")
        os.utime(tmp_path / f".partial-{name}", (time.time() - age,) * 2)
    cache_module.Cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".partial-new"]


@pytest.mark.parametrize(("engine", "times"), [("pypdf", 30), ("pypdfium2", 15)])
def test_cached_corpus_is_read_much_faster(tmp_path: Path, engine: str, times: int) -> None:
    """Ten reports of four pages; about 190 and 40 times here, and less on a busy machine."""

    def seconds() -> float:
        begin = time.perf_counter()
        assert len(read_many(NTSB, workers=0, cache=tmp_path, engine=engine)[0]) == len(NTSB)
        return time.perf_counter() - begin

    read(NTSB[0], engine)  # its imports
    first = seconds()
    assert first / min(seconds() for _ in range(5)) > times


# Packed documents


def test_packed_document_is_the_same() -> None:
    """Cells, rules, headings, confidences, code, unread pages, halves of surrogate pairs, numbers to the last bit."""
    cells = (Cell(0, 1, 0.1, 0.2), Cell(2, 3, 0.3, 1 / 3))
    units = (
        Unit("a b", 1, 1, Box(0.1, 1e-300, 3.0, 4.0), 0.1 + 0.2, True, cells, 2, 0.5, True),
        Unit('\ud800 文 "\\\n', 1, 2, Box(1.0, 2.0, 3.0, 4.0), 9.0),
    )
    empty = Page(3, 5.0, 6.0, (), (), "is a scan")
    more = Page(7, 600.0, 800.0, (Unit("x", 7, 1, Box(0.0, 0.0, 1.0, 1.0), 1.0),), (Box(1.0, 1.0, 2.0, 2.0),))
    document = Document(
        "a.pdf", "00", (Page(1, 600.0, 800.5, units, (Box(0.0, 1.0, 2.0, 1.5),)), empty, more), "t", "r"
    )
    again = unpack(pack(document), "a.pdf")
    assert again == document
    assert [type(value) for value in again.units[0]] == [type(value) for value in document.units[0]]
    assert isinstance(again.units[0].cells[0], Cell)
    assert isinstance(again.pages[0].rules[0], Box)
    assert unpack(pack(Document("", "", ())), "b").pages == ()


def test_every_report_survives_packing() -> None:
    """And every field that a unit has."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in NTSB[:3]:
            document = read(path)
            assert unpack(pack(document), document.file) == document
    assert Unit._fields == (
        "text", "page", "line", "box", "font_size", "bold", "cells", "heading", "confidence", "code",
    )  # fmt: skip
