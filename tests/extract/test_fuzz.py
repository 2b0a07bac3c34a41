"""Damaged PDFs, drawn at random: every one ends as a document or as our error, in time, and costs no other file."""

import math
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from reportlab.pdfgen.canvas import Canvas

from e2erag.extract import Document, ReadError, stream
from e2erag.extract.worker import Worker

NTSB = sorted((Path(__file__).parents[2] / "examples" / "ntsb").glob("*.pdf"))
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.pdf"))
SECONDS, MEMORY = 20.0, 2 << 30

# What a reason ends in: something to do about it.
WAY_OUT = r"again|try |pip install|give it more|convert|save a copy|leave it out"
# Reasons that are none of a damaged file's: its reader has a mistake, or was ended.
OURS = re.compile(r"^made its reader fail|^made the process|^is not read after|^needs more than")


def flipped(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Some bytes are others, anywhere."""
    out = bytearray(data)
    for _ in range(draw.choice([1, 3, 10, 100, 1000])):
        out[draw.randrange(len(out))] = draw.randrange(256)
    return bytes(out)


def truncated(data: bytes, other: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def spliced(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """The beginning of one and the end of another."""
    return data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]


def deleted(data: bytes, other: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.choice([1, 7, 100, 5000]) :]


def doubled(data: bytes, other: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data))
    chunk, to = data[start : start + draw.choice([7, 100, 5000])], draw.randrange(len(data))
    return data[:to] + chunk + data[to:]


def renumbered(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Numbers outside streams are others: of objects, lengths, counts, offsets, boxes."""
    values = [b"0", b"1", b"-1", b"3", b"65536", b"2147483647", b"-2147483648", b"99999999999999999999", b"1e99", b"."]

    def change(match: re.Match[bytes]) -> bytes:
        return draw.choice(values) if draw.random() < rate else match[0]

    rate = draw.choice([0.01, 0.05, 0.3])
    parts = re.split(rb"(stream\r?\n.*?endstream)", data, flags=re.DOTALL)
    return b"".join(part if i % 2 else re.sub(rb"\d+", change, part) for i, part in enumerate(parts))


def renamed(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """A name stands where another one did: a wrong filter, type, font or key."""
    names = sorted(set(re.findall(rb"/[A-Za-z]+\d*", data)))
    old, new = draw.choice(names), draw.choice(names)
    return re.sub(re.escape(old) + rb"\b", new, data, count=draw.choice([0, 1, 2]))


def reparsed(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Signs of the syntax are others, in streams too where these are not packed."""
    signs = b"<>[](){}/% \n"
    places = [i for i, byte in enumerate(data[:200_000]) if byte in signs]
    out = bytearray(data)
    for _ in range(draw.choice([1, 2, 10, 50])):
        out[draw.choice(places)] = draw.choice(signs)
    return bytes(out)


WAYS: list[Callable[[bytes, bytes, random.Random], bytes]] = [
    flipped, truncated, spliced, deleted, doubled, renumbered, renamed, reparsed,
]  # fmt: skip


def small(path: Path, packed: int) -> bytes:
    """Two pages with text in several fonts, a table, a form within a form, a link, an outline."""
    canvas = Canvas(str(path), pageCompression=packed, invariant=True)
    canvas.setTitle("small")
    canvas.beginForm("inner")
    canvas.drawString(10, 10, "inner")
    canvas.endForm()
    canvas.beginForm("outer")
    canvas.doForm("inner")
    canvas.rect(5, 5, 50, 20)
    canvas.endForm()
    for number in range(2):
        canvas.bookmarkPage(f"p{number}")
        canvas.addOutlineEntry(f"page {number}", f"p{number}")
        for row, font in enumerate(("Helvetica", "Times-Bold", "Courier", "Symbol", "ZapfDingbats")):
            canvas.setFont(font, 8 + row)
            canvas.drawString(50, 700 - 20 * row, f"line {row} of page {number}")
            canvas.drawString(300, 700 - 20 * row, str(row * 1000))
            canvas.line(50, 695 - 20 * row, 400, 695 - 20 * row)
        canvas.doForm("outer")
        canvas.linkURL("http://localhost/", (50, 50, 99, 99))
        canvas.showPage()
    canvas.save()
    return path.read_bytes()


def damage(folder: Path, count: int, seed: int) -> list[Path]:
    """`count` damaged files: every way in turn, of small files mostly, once or several times over."""
    draw = random.Random(seed)
    packed, plain = small(folder / "packed", 1), small(folder / "plain", 0)
    reports = [path.read_bytes() for path in NTSB]
    files = []
    for n in range(count):
        way = WAYS[n % len(WAYS)]
        data = draw.choice([packed, plain, plain, draw.choice(reports)])
        other = draw.choice([packed, plain, draw.choice(reports)])
        data = way(data, other, draw)
        while draw.random() < 0.2 and len(data) > 2000:
            data = draw.choice([flipped, spliced, deleted, doubled, renumbered])(data, other, draw)
        files.append(folder / f"{n:04}-{way.__name__}.pdf")
        files[-1].write_bytes(data)
    return files


def check(files: list[Path], engine: str | None, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Reads them in two workers, and counts what they end in."""
    started: list[Worker] = []
    start = Worker._start
    monkeypatch.setattr(Worker, "_start", lambda self: started.append(self) or start(self))
    counts: Counter[str] = Counter()
    ours = []
    with stream(files, workers=2, engine=engine, seconds=SECONDS, memory=MEMORY) as found:
        for path, item in zip(files, found, strict=True):
            assert item.file == str(path)
            if isinstance(item, ReadError):
                assert "\n" not in item.reason
                assert len(item.reason) < 500
                assert re.search(WAY_OUT, item.reason), item
                counts[item.reason.split("(")[0].split(":")[0].strip()] += 1
                ours += [str(item)] * bool(OURS.search(item.reason))
            else:
                assert isinstance(item, Document)
                assert item.units
                assert all(math.isfinite(edge) for unit in item for edge in (*unit.box, unit.font_size)), item
                assert all(text.encode() for text in (*item.texts, item.to_markdown()))
                counts["document"] += 1
    print(engine, dict(counts), len(started), "processes")
    assert not ours, "\n".join(ours)
    assert len(started) == 2
    return counts


@pytest.mark.parametrize("engine", ["pypdf", "pypdfium2"])
def test_damaged_file_is_read_or_refused(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 files of seed 0: no reader fails, no process ends, none needs more time; some of them can be read."""
    counts = check(damage(tmp_path, 120, 0), engine, monkeypatch)
    assert 20 < counts["document"] < 120


@pytest.mark.parametrize("engine", ["pypdf", "pypdfium2"])
def test_damaged_golden_file_is_read_or_refused(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the files with golden texts twelve times over, bytes flipped or cut off, seed 5: other programs made
    them, with fonts, streams and tables of objects that the others here don't have."""
    draw, files = random.Random(5), []
    for path in GOLDEN:
        for n, way in enumerate([flipped, truncated] * 6):
            files.append(tmp_path / f"{path.stem}-{n}-{way.__name__}.pdf")
            files[-1].write_bytes(way(path.read_bytes(), b"", draw))
    counts = check(files, engine, monkeypatch)
    assert counts.total() == 12 * len(GOLDEN) == 48
    assert 10 < counts["document"] < 48


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["pypdf", "pypdfium2", None])
@pytest.mark.parametrize("seed", range(1, 5))
def test_hundreds_of_damaged_files_are_read_or_refused(
    tmp_path: Path, engine: str | None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 of each seed."""
    assert check(damage(tmp_path, 400, seed), engine, monkeypatch).total() == 400
