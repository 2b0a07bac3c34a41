"""Files made to take for ever, or all the memory there is: each ends within the limits, as a document or an error."""

import math
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from e2erag.extract import Document, ReadError, stream

SECONDS, MEMORY = 2.0, 400 << 20
# What a reason ends in: something to do about it.
WAY_OUT = r"(again|try |pip install|give it more|convert|save a copy|leave it out|check|split)"
TEXT = b"BT /F 12 Tf 50 700 Td (word) Tj ET "
FORM = (
    b"/Type /XObject /Subtype /Form /BBox [0 0 600 800] /Resources << /Font << /F 4 0 R >> /XObject << /N %d 0 R >> >>"
)


def pdf(*objects: bytes, trailer: bytes = b"/Root 1 0 R", xref: bytes | None = None) -> bytes:
    """A file of these objects, from number 1 on, with a table that is right unless `xref` stands in its place."""
    out, offsets = bytearray(b"%PDF-1.7\n"), []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    start = len(out)
    if xref is None:
        xref = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
        xref += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += xref + b"trailer\n<< /Size %d %b >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, start)
    return bytes(out)


def made(content: bytes, entries: bytes = b"") -> bytes:
    return b"<< /Length %d %b >>\nstream\n%b\nendstream" % (len(content), entries, content)


def page(
    content: bytes, *more: bytes, fonts: bytes = b"", resources: bytes = b"", size: bytes = b"0 0 600 800"
) -> bytes:
    """One page that shows `content`, a whole stream object; `more` are objects from number 6 on."""
    return pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [%b] /Contents 5 0 R /Resources << /Font << /F 4 0 R %b >> %b >> >>"
        % (size, fonts, resources),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        content,
        *more,
    )


def bomb(size: int, fill: bytes = b" ") -> bytes:
    """`size` bytes of `fill` in a thousandth of that: one packed block, said again and again."""
    block = fill * ((1 << 20) // len(fill))
    packer = zlib.compressobj(9)
    head, again = (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    total, times = zlib.adler32(block), size // len(block)
    for _ in range(times - 1):
        total = zlib.adler32(block, total)
    return head + again * (times - 1) + b"\3\0" + total.to_bytes(4, "big")


def deep_tree() -> bytes:
    kids = [b"<< /Type /Pages /Parent %d 0 R /Kids [%d 0 R] /Count 1 >>" % (n - 1, n + 1) for n in range(2, 10_002)]
    last = b"<< /Type /Page /Parent 10001 0 R /MediaBox [0 0 600 800] >>"
    return pdf(b"<< /Type /Catalog /Pages 2 0 R >>", *kids, last)


def own_kid() -> bytes:
    return pdf(b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Parent 2 0 R /Kids [2 0 R 2 0 R] /Count 2 >>")


def two_way_kids() -> bytes:
    node = b"<< /Type /Pages /Parent %d 0 R /Kids [%d 0 R %d 0 R] /Count 9 >>"
    return pdf(b"<< /Type /Catalog /Pages 2 0 R >>", node % (3, 3, 3), node % (2, 2, 2))


def wide_tree() -> bytes:
    """Each node has two kids that are the same one: 2³⁰ pages of 31 nodes."""
    nodes = [b"<< /Type /Pages /Kids [%d 0 R %d 0 R] /Count 2 >>" % (n + 1, n + 1) for n in range(2, 32)]
    return pdf(b"<< /Type /Catalog /Pages 2 0 R >>", *nodes, b"<< /Type /Page /MediaBox [0 0 600 800] >>")


def huge_count() -> bytes:
    return page(made(TEXT)).replace(b"/Count 1 ", b"/Count 2000000000 ")


def nested_arrays() -> bytes:
    return page(made(TEXT + b"[" * 100_000 + b"]" * 100_000 + b" TJ"))


def nested_object() -> bytes:
    return page(made(TEXT), b"[" * 100_000 + b"]" * 100_000, resources=b"/Properties 6 0 R /XObject 6 0 R")


def many_saves() -> bytes:
    return page(made(b"q " * 300_000 + TEXT))


def inflated_page() -> bytes:
    return page(made(bomb(1 << 30), b"/Filter /FlateDecode"))


def inflated_twice() -> bytes:
    return page(made(zlib.compress(bomb(1 << 30), 9), b"/Filter [/FlateDecode /FlateDecode]"))


def inflated_text() -> bytes:
    return page(made(bomb(1 << 29, b"BT /F 9 Tf (a) Tj ET"), b"/Filter /FlateDecode"))


def inflated_rows() -> bytes:
    parameters = (
        b"/Filter /FlateDecode /DecodeParms << /Predictor 12 /Columns 100000000 /Colors 32 /BitsPerComponent 16 >>"
    )
    return page(made(bomb(1 << 24, b"\2"), parameters))


def run_lengths() -> bytes:
    return page(made(zlib.compress(b"\x81 " * 4_000_000), b"/Filter [/FlateDecode /RunLengthDecode]"))


def object_stream_in_itself() -> bytes:
    inside = b"6 0 7 20 << /A 7 0 R >>      << /B 6 0 R >>"
    xref = made(b"\x02\x00\x06\x00" * 9, b"/Type /XRef /W [1 2 1] /Size 9 /Root 6 0 R")
    body = b"%PDF-1.7\n6 0 obj\n" + made(inside, b"/Type /ObjStm /N 2 /First 9 /Extends 6 0 R") + b"\nendobj\n"
    return body + b"8 0 obj\n" + xref + b"\nendobj\nstartxref\n%d\n%%%%EOF\n" % len(body)


def wrong_length() -> bytes:
    return page(b"<< /Length 999999999999 >>\nstream\n" + TEXT + b"\nendstream")


def negative_length() -> bytes:
    return page(b"<< /Length -99 >>\nstream\n" + TEXT + b"\nendstream")


def length_of_itself() -> bytes:
    return page(b"<< /Length 5 0 R >>\nstream\n" + TEXT + b"\nendstream")


def previous_table_is_this_one() -> bytes:
    whole = page(made(TEXT))
    start = int(whole.split(b"startxref")[1].split()[0])
    return whole.replace(b"/Root 1 0 R", b"/Root 1 0 R /Prev %d" % start)


def huge_table() -> bytes:
    return pdf(b"<< /Type /Catalog /Pages 2 0 R >>", b"<<>>", xref=b"xref\n0 99999999999\n0000000000 65535 f \n")


def forms_that_fan_out() -> bytes:
    """30 forms, each of which draws the next one twice: 2³⁰ words in 5 kB."""
    forms = [made(TEXT + b"/N Do /N Do", FORM % (n + 1)) for n in range(6, 36)]
    return page(made(b"/N Do"), *forms, made(TEXT, FORM % 4), resources=b"/XObject << /N 6 0 R >>")


def forms_that_fan_out_within_the_depth() -> bytes:
    """10 forms, each of which draws the next one twenty times: never deep, and 20¹⁰ words."""
    forms = [made(TEXT + b"/N Do " * 20, FORM % (n + 1)) for n in range(6, 16)]
    return page(made(b"/N Do"), *forms, made(TEXT, FORM % 4), resources=b"/XObject << /N 6 0 R >>")


def huge_page() -> bytes:
    return page(made(TEXT), size=b"-1e38 -1e38 1e38 1e38")


def endless_page() -> bytes:
    return page(made(TEXT), size=b"0 0 inf nan")


def wide_ranges() -> bytes:
    """A font's map to characters, with ranges of sixteen million codes, each named a hundred times."""
    ranges = b"<000000> <ffffff> <0041>\n" * 100
    table = b"begincmap 1 begincodespacerange <000000> <ffffff> endcodespacerange 100 beginbfrange\n" + ranges
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 7 0 R >>"
    return page(made(TEXT.replace(b"/F", b"/G")), font, made(table + b"endbfrange endcmap"), fonts=b"/G 6 0 R")


def inflated_map() -> bytes:
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 7 0 R >>"
    table = bomb(1 << 29, b"<00> <ff> <0041>\n")
    return page(made(TEXT.replace(b"/F", b"/G")), font, made(table, b"/Filter /FlateDecode"), fonts=b"/G 6 0 R")


def huge_widths() -> bytes:
    font = b"<< /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H /DescendantFonts [7 0 R] >>"
    inner = b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /X /W [0 2000000000 500] /DW 1000 >>"
    return page(made(TEXT.replace(b"/F", b"/G")), font, inner, fonts=b"/G 6 0 R")


def huge_numbers() -> bytes:
    return page(made(b"BT /F 1e308 Tf 1e308 0 0 1e308 -1e308 1e308 Tm " + b"9" * 100_000 + b" Tc (word) Tj ET"))


def backwards_numbers() -> bytes:
    """A word that is a number only at its end, where a pattern may go back and forth."""
    return page(made(b"1" * 300_000 + b"e" + b"-" * 300_000 + b" Tf " + TEXT))


def long_name() -> bytes:
    return page(made(b"/" + b"#41" * 1_000_000 + b" gs " + TEXT))


def open_string() -> bytes:
    return page(made(TEXT + b"(" * 1_000_000))


def open_dictionaries() -> bytes:
    return page(made(TEXT + b"<<" * 100_000))


def many_inline_images() -> bytes:
    return page(made(b"BI /W 1 ID x " * 50_000 + TEXT))


def repeated_text() -> bytes:
    """A long text that stands, by its name, for each of many glyphs."""
    text = b"/Properties << /P << /ActualText (%b) >> >>" % (b"x" * 100_000)
    return page(made(b"BT /F 1 Tf " + b"/S /P BDC (a) Tj EMC " * 100_000 + b"ET"), resources=text)


def nested_marks() -> bytes:
    return page(made(b"BT /F 1 Tf " + b"/S BMC (a) Tj " * 100_000 + b"EMC " * 100_000 + b"ET"))


def nested_texts() -> bytes:
    """Around blanks, of which none can be left out for what it stands for."""
    marks = b"/S << /ActualText (x) >> BDC ( ) Tj "
    return page(made(b"BT /F 1 Tf " + marks * 50_000 + b"EMC " * 50_000 + b"ET"))


def endless_field() -> bytes:
    """A form's field with a million lines, which the viewer is to draw."""
    field = b"/FT /Tx /Ff 4096 /DA (/F 0 Tf) /Rect [50 50 550 750] /V (%b)" % (b"\\n" * 1_000_000 + b"a")
    return pdf(
        b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [6 0 R] /NeedAppearances true >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 5 0 R /Annots [6 0 R] >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        made(TEXT),
        b"<< /Type /Annot /Subtype /Widget /T (a) " + field + b" >>",
    )


def many_gaps() -> bytes:
    return page(made(b"BT /F 1 Tf 50 700 Td [" + b"(a)-200" * 400_000 + b"] TJ ET"))


def many_lines() -> bytes:
    """A letter in every place of a page, each on a line of its own."""
    places = b"".join(b"1 0 0 1 %d %d Tm (a) Tj " % (x * 70, y) for x in range(8) for y in range(0, 800, 1))
    return page(made(b"BT /F 1 Tf " + places * 3 + b"ET"))


HOSTILE: list[Callable[[], bytes]] = [
    deep_tree, own_kid, two_way_kids, wide_tree, huge_count, nested_arrays, nested_object, many_saves, inflated_page,
    inflated_twice, inflated_text, inflated_rows, run_lengths, object_stream_in_itself, wrong_length, negative_length,
    length_of_itself, previous_table_is_this_one, huge_table, forms_that_fan_out, forms_that_fan_out_within_the_depth,
    huge_page, endless_page, wide_ranges, inflated_map, huge_widths, huge_numbers, backwards_numbers, long_name,
    open_string, open_dictionaries, many_inline_images, endless_field, many_gaps, repeated_text, nested_marks,
    nested_texts, many_lines,
]  # fmt: skip

OUTCOME = {
    "pypdf": {"huge_count": "", "previous_table_is_this_one": "", "negative_length": "", "own_kid": "is damaged"},
    "pypdfium2": {"huge_count": "", "wrong_length": "", "many_saves": "", "nested_arrays": "", "huge_page": ""},
}
"""What some of them are known to end in: "" is a document."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("hostile")
    for make in HOSTILE:
        (folder / f"{make.__name__}.pdf").write_bytes(make())
    return [folder / f"{make.__name__}.pdf" for make in HOSTILE]


class Ends(NamedTuple):
    """What became of each file with an engine, and in how many seconds."""

    engine: str
    found: dict[str, Document | ReadError]
    seconds: float


@pytest.fixture(scope="module", params=["pypdf", "pypdfium2"])
def ends(request: pytest.FixtureRequest, files: list[Path]) -> Ends:
    begin = time.monotonic()
    items = list(stream(files, workers=2, engine=request.param, seconds=SECONDS, memory=MEMORY))
    found = {file.stem: item for file, item in zip(files, items, strict=True)}
    return Ends(request.param, found, time.monotonic() - begin)


@pytest.mark.parametrize("name", [make.__name__ for make in HOSTILE])
def test_hostile_file_is_read_or_refused(ends: Ends, name: str) -> None:
    """A document with finite boxes, or a reason of one line with a way out."""
    item = ends.found[name]
    if isinstance(item, ReadError):
        assert "\n" not in item.reason
        assert re.search(WAY_OUT, item.reason), item.reason
    else:
        assert all(math.isfinite(edge) for unit in item for edge in unit.box)
        assert all(page.width < 1e5 and page.height < 1e5 for page in item.pages)
    expected = OUTCOME[ends.engine].get(name)
    if expected is not None:
        assert item.reason.startswith(expected) if isinstance(item, ReadError) else expected == ""


def test_hostile_files_end_in_time(ends: Ends) -> None:
    """Two workers need no longer than half of the files would with all their time."""
    assert ends.seconds < len(ends.found) * SECONDS / 2


HUNGRY = (
    inflated_page, inflated_twice, inflated_text, inflated_rows, run_lengths, wide_ranges, inflated_map, nested_object,
    repeated_text,
)  # fmt: skip
GROWN = """
import resource, sys
from e2erag.extract import stream
if __name__ == "__main__":
    engine, seconds, memory, *files = sys.argv[1:]
    list(stream(files, workers=2, engine=engine, seconds=float(seconds), memory=int(memory)))
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.parametrize("engine", ["pypdf", "pypdfium2"])
def test_no_worker_grows_over_its_limit(engine: str, files: list[Path], tmp_path: Path) -> None:
    """Of those that would take most, in a program of its own, whose only other processes are the workers."""
    program = tmp_path / "grown.py"
    program.write_text(GROWN)
    hungry = [str(file) for file in files if file.stem in {make.__name__ for make in HUNGRY}]
    command = [sys.executable, str(program), engine, str(SECONDS), str(MEMORY), *hungry]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 20 << 20 < grown < MEMORY + (200 << 20)
