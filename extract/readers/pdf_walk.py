"""One page's drawing instructions → `Run`s: what was shown, where, and how large (PDF 32000-1:2008, 8.4 and 9.2-9.4).

An own walk because `extract_text` gives no boxes, and because where text is placed with `cm` only (EDGAR's filings)
its `visitor_text` breaks lines in mid-word. Most of the time goes into pypdf's parser, so it costs about the same.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from e2erag.extract.readers.leftwards import RIGHT_TO_LEFT, one_glyph
from e2erag.extract.readers.lines import CELL, SPACE, Line, Run
from e2erag.extract.readers.pdf_fields import Field, pressed
from e2erag.extract.readers.pdf_objects import Font, entries, font_of, get, instructions, key_of, text_of
from e2erag.extract.readers.shown import CURVED, FORM_DEPTH, IDENTITY, UNSEEN, Matrix, Point, Rules, times
from e2erag.extract.readers.thinned import without_paths

# Decoded bytes of instructions that one page may have, its form XObjects included. pypdf parses about 2 MB/s. A page
# of text has 5-150 kB; a street map may have 10 MB, and hardly a word: beyond this its paths are left out.
PAGE_BYTES = 4_000_000
THINNED = 10  # how many times as many of them are looked through then

ANNOTATIONS = ("/Widget", "/FreeText", "/Stamp")  # those that show words of their own

FRAME_BYTES = 20_000  # a form that shows nothing is followed up to this size, for its ruling lines

_SHOWS = re.compile(rb"T[jJ]|['\"]|Do|BI")  # without one of these a stream has no text or picture to give
# (filled, stroked, closed first)
_PAINTS = {
    b"S": (False, True, False), b"s": (False, True, True), b"f": (True, False, False), b"F": (True, False, False),
    b"f*": (True, False, False), b"B": (True, True, False), b"B*": (True, True, False), b"b": (True, True, True),
    b"b*": (True, True, True),
}  # fmt: skip
_BLANKS = re.compile(rb"( {4,})")


class PageTooLarge(Exception):
    """The page has more than `PAGE_BYTES` of instructions."""


class Walk:
    """Follows one page's instructions and collects what they show in `runs`, in the order of the stream.

    `rules` gets the ruling lines, `pictures` the area of all images in points, `mute` the number of glyphs that stand
    for no character.

    With `thin` lines, curves and rectangles are left out, of which a map is mostly made, and count for a tenth.

    `base` leads from the page's user space to displayed coordinates. `fonts` is filled on the way and may be shared by
    the pages of a document.
    """

    def __init__(
        self, base: Matrix, reader: Any, fonts: dict[Any, Font | None], rules: Rules, thin: bool = False
    ) -> None:
        self.reader, self.fonts, self.rules, self.thin = reader, fonts, rules, thin
        self.budget = PAGE_BYTES
        self.runs: list[Run] = []
        self.pictures, self.mute = 0.0, 0
        self.phrases = False  # whether a font's glyphs stand for whole phrases
        self.path: list[list[Point]] = []  # subpaths that are not painted yet, in user space
        self.pen = 1.0  # w
        self.stack: list[tuple[Any, ...]] = []  # what q saved
        self.marked: list[tuple[str, int]] = []  # open marked content: what it stands for, and runs before it
        self.outer = 0  # how many of them this stream hasn't opened
        self.forms: list[int] = []  # the form XObjects that are being drawn
        self.resources: Any = {}
        self.ctm, self.tm, self.tlm = base, IDENTITY, IDENTITY
        self.font: Font | None = None
        self.size = self.char = self.word = self.leading = self.rise = 0.0  # Tf Tc Tw TL Ts
        self.stretch = 1.0  # Tz / 100
        self.operators: dict[bytes, Callable[..., None]] = {
            b"q": self.push, b"Q": self.pop, b"cm": self.cm, b"Do": self.do, b"BT": self.bt, b"Tf": self.tf,
            b"Tc": self.tc, b"Tw": self.tw, b"Tz": self.tz, b"TL": self.tl, b"Ts": self.ts, b"Td": self.td,
            b"TD": self.td_leading, b"Tm": self.set_tm, b"T*": self.next_line, b"Tj": self.tj, b"TJ": self.show,
            b"'": self.quote, b'"': self.double_quote, b"INLINE IMAGE": self.picture, b"w": self.line_width,
            b"m": self.move, b"l": self.line, b"re": self.rectangle, b"h": self.close, b"n": self.no_paint,
            b"c": self.curve, b"v": self.curve, b"y": self.curve, b"BMC": self.mark, b"BDC": self.mark,
            b"EMC": self.marked_end,
            **{name: partial(self.paint, *modes) for name, modes in _PAINTS.items()},
        }  # fmt: skip

    def stream(self, content: Any, resources: Any) -> None:
        """Walks a content stream; without `resources` of its own it uses those of the stream that draws it."""
        stream = instructions(content, self.reader)
        data = stream.get_data()
        if self.thin:
            self.charge(len(data) // THINNED)
            data = without_paths(data)
            stream.set_data(data)
        self.charge(len(data))
        if not _SHOWS.search(data) and (not self.forms or len(data) > FRAME_BYTES):
            return
        outer, self.resources = self.resources, self.resources if resources is None else resources.get_object()
        operators, outer_marks, self.outer = self.operators, self.outer, len(self.marked)
        for operands, name in stream.operations:
            if name in operators:
                try:
                    operators[name](*operands)
                except (TypeError, ValueError, LookupError):  # wrong operands; like viewers, go on after them
                    continue
        while len(self.marked) > self.outer:  # what is never closed reaches to the end
            self.marked_end()
        self.outer = outer_marks
        self.resources = outer

    def charge(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise PageTooLarge(f"more than {PAGE_BYTES:,} bytes of drawing instructions")

    def push(self) -> None:
        self.stack.append((
            self.ctm, self.font, self.size, self.char, self.word, self.stretch, self.leading, self.rise, self.pen
        ))  # fmt: skip

    def pop(self) -> None:
        if self.stack:
            (
                self.ctm, self.font, self.size, self.char, self.word, self.stretch, self.leading, self.rise, self.pen
            ) = self.stack.pop()  # fmt: skip

    def cm(self, *m: Any) -> None:
        self.ctm = times(_matrix(m), self.ctm)

    def do(self, name: Any) -> None:
        form = self.resources["/XObject"][name]
        kind = get(form, "/Subtype")
        if kind == "/Image":
            self.picture()
        if kind == "/Form":
            self.form(form)

    def form(self, form: Any) -> None:
        if len(self.forms) >= FORM_DEPTH or id(form) in self.forms:
            return
        depth, outer = len(self.stack), (self.tm, self.tlm, self.resources)
        self.push()
        self.forms.append(id(form))
        try:
            self.ctm = times(_matrix(get(form, "/Matrix", IDENTITY)), self.ctm)
            self.stream(form, get(form, "/Resources"))
        finally:
            self.forms.pop()
            del self.stack[depth + 1 :]
            self.pop()
            self.tm, self.tlm, self.resources = outer

    def annotations(self, annotations: Any, base: Matrix) -> None:
        """What stands on the page besides its own content; one that is broken costs only itself."""
        if annotations is None or not isinstance(annotations := annotations.get_object(), list):
            return
        for each in annotations:
            self.stack, self.ctm, self.resources = [], base, {}
            try:
                self.annotation(each.get_object())
            except (MemoryError, PageTooLarge):
                raise
            except Exception:  # pypdf has errors of its own for what it can't parse
                continue

    def annotation(self, annotation: Any) -> None:
        """What a form's field, a note on the page or a stamp shows (PDF 32000-1, 12.5.5)."""
        if get(annotation, "/Subtype") not in ANNOTATIONS or int(get(annotation, "/F", 0)) & UNSEEN:
            return
        shown = get(get(annotation, "/AP", {}), "/N")
        form = get(self.reader.root_object, "/AcroForm", {}) if get(annotation, "/Subtype") == "/Widget" else {}
        left = form and (shown is None or getattr(get(form, "/NeedAppearances"), "value", False))
        if left and (field := Field.of(annotation, form)):
            self.field(field, form)
            return
        if left and pressed(annotation):
            return
        if isinstance(shown, dict) and not hasattr(shown, "get_data"):
            shown = get(shown, get(annotation, "/AS", "/Off"))
        if shown is None:
            return
        a, b, c, d, e, f = _matrix(get(shown, "/Matrix", IDENTITY))
        x0, y0, x1, y1 = map(float, get(shown, "/BBox"))
        corners = [(x * a + y * c + e, x * b + y * d + f) for x in (x0, x1) for y in (y0, y1)]
        left, low = map(min, zip(*corners, strict=True))
        right, high = map(max, zip(*corners, strict=True))
        rect = [float(value) for value in get(annotation, "/Rect")]
        (to_left, to_right), (to_low, to_high) = map(sorted, (rect[::2], rect[1::2]))
        wide, tall = (to_right - to_left) / ((right - left) or 1.0), (to_high - to_low) / ((high - low) or 1.0)
        self.push()
        try:
            self.ctm = times((wide, 0.0, 0.0, tall, to_left - wide * left, to_low - tall * low), self.ctm)
            self.form(shown)
        finally:
            self.pop()

    def field(self, field: Field, form: Any) -> None:
        """A value that the file leaves to viewers to draw."""
        self.push()
        self.charge(len(field.text))
        self.resources = get(form, "/DR", {})
        self.tf(field.font, 1.0)
        if self.font is not None:
            self.size, lines = field.placed(self.font)
            self.char = self.rise = 0.0
            self.stretch = 1.0
            for text, x, y, wide in lines:
                text = one_glyph(text) if RIGHT_TO_LEFT.search(text) else text  # in the order in which it is read
                self.emit(times((1.0, 0.0, 0.0, 1.0, x, y), self.ctm), [text], 0.0, wide, False, self.font, ())
        self.pop()

    def picture(self, *_: Any) -> None:
        """An image fills the unit square (PDF 32000-1, 8.9.5)."""
        a, b, c, d = self.ctm[:4]
        self.pictures += abs(a * d - b * c)

    # Marked content

    def mark(self, *operands: Any) -> None:
        self.marked.append(("", len(self.runs)))
        properties = entries(operands[1] if len(operands) > 1 else None, get(self.resources, "/Properties"))
        if properties is not None and (text := text_of(get(properties, "/ActualText"))):
            self.charge(len(text))
            self.marked[-1] = text, len(self.runs)

    def marked_end(self) -> None:
        """What was shown is what /ActualText says (PDF 32000-1, 14.9.4): a letter of small capitals, a hyphen that a
        line's end has put in. None, or an empty one, leaves it; one that can't be printed leaves nothing."""
        if len(self.marked) <= self.outer:
            return
        text, first = self.marked.pop()
        if not text:
            return
        shown = [run for run in self.runs[first:] if not run.text.isspace()]
        if not shown:
            del self.runs[first + 1 :]  # one blank says what many say
            return
        begin, line = shown[0], Line(shown[:1], [])
        last = [begin, *(run for run in shown if line.gap(run) is not None)][-1]
        drawn = any(char.isprintable() or char > "\x80" for char in text)
        text = one_glyph(text) if RIGHT_TO_LEFT.search(text) else text  # in the order in which it is read
        self.runs[first:] = [replace(begin, text=text, end_x=last.end_x, end_y=last.end_y, gaps=())] * drawn

    # Paths

    def line_width(self, value: Any) -> None:
        self.pen = float(value)

    def move(self, x: Any, y: Any) -> None:
        self.path.append([(float(x), float(y))])

    def line(self, x: Any, y: Any) -> None:
        self.path[-1].append((float(x), float(y)))

    def curve(self, *points: Any) -> None:
        self.path[-1] += CURVED, (float(points[-2]), float(points[-1]))

    def rectangle(self, x: Any, y: Any, width: Any, height: Any) -> None:
        x0, y0 = float(x), float(y)
        x1, y1 = x0 + width, y0 + height
        self.path.append([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])

    def close(self) -> None:
        if self.path[-1][-1] != self.path[-1][0]:
            self.path[-1].append(self.path[-1][0])

    def no_paint(self) -> None:
        self.path = []

    def paint(self, filled: bool, stroked: bool, closed: bool) -> None:
        if closed and self.path:
            self.close()
        path, self.path = self.path, []
        if not self.rules.full:
            for points in path:
                self.rules.paint(points, self.ctm, filled, stroked, self.pen)

    # Text

    def bt(self) -> None:
        self.tm = self.tlm = IDENTITY

    def tf(self, name: Any, size: Any) -> None:
        self.size = float(size)
        table = get(self.resources, "/Font", {})
        resource = table.raw_get(name) if name in table else None
        key = key_of(resource)
        if key not in self.fonts:
            self.fonts[key] = font_of(resource.get_object() if resource is not None else None)
        self.font = self.fonts[key]

    def tc(self, value: Any) -> None:
        self.char = float(value)

    def tw(self, value: Any) -> None:
        self.word = float(value)

    def tz(self, value: Any) -> None:
        self.stretch = float(value) / 100

    def tl(self, value: Any) -> None:
        self.leading = float(value)

    def ts(self, value: Any) -> None:
        self.rise = float(value)

    def td(self, x: Any, y: Any) -> None:
        a, b, c, d, e, f = self.tlm
        self.tm = self.tlm = (a, b, c, d, x * a + y * c + e, x * b + y * d + f)

    def td_leading(self, x: Any, y: Any) -> None:
        self.leading = -float(y)
        self.td(x, y)

    def set_tm(self, *m: Any) -> None:
        self.tm = self.tlm = _matrix(m)

    def next_line(self) -> None:
        self.td(0.0, -self.leading)

    def tj(self, string: Any) -> None:
        self.show((string,))

    def quote(self, string: Any) -> None:
        self.next_line()
        self.show((string,))

    def double_quote(self, word: Any, char: Any, string: Any) -> None:
        self.word, self.char = float(word), float(char)
        self.quote(string)

    def show(self, items: Iterable[Any]) -> None:
        """Strings, and between them moves to the left in thousandths of an em (PDF 32000-1, 9.4.3)."""
        font = self.font
        if font is None:
            self.mute += 1
            return
        self.phrases |= font.phrases
        em = self.size * font.height
        trm = times(self.tm, self.ctm)
        parts: list[str] = []
        gaps: list[tuple[int, float, float]] = []
        length, end = 0, 0.0  # of the parts, and where their last glyph ends
        start = pen = gap = 0.0  # in text space, before Tz; `pen` is where the last glyph ended, `gap` what follows it
        low = high = 0.0  # how far the glyphs since `start` reach
        blank = False
        spread = self.char > abs(em)  # no letter-spacing: a table row in one string, a cell per glyph
        for raw in _pieces(items, font.step if spread else 0):
            if not isinstance(raw, bytes):
                gap -= raw * 0.001 * self.size
                continue
            text, width, count = font.decode(raw)
            advance = width * self.size + count * self.char
            if self.word and font.codec is None:
                advance += raw.count(b" ") * self.word
            if not text or text.isspace():
                gap, blank = gap + advance, blank or bool(text)
                self.mute += count if not text else 0
                continue
            before, after = self.margins(font, text)
            after += self.char * spread
            left = pen + gap + before
            if parts and gap + before > CELL * abs(em):
                self.emit(trm, parts, low, high, pen < start, font, gaps)
                parts, gaps, length = [], [], 0
            if not parts:
                start = low = high = left
            if parts and (blank or gap > SPACE * abs(em)):
                gaps.append((length + 1, end, left))
            if blank or (parts and gap > SPACE * abs(em)):
                parts.append(" ")
                length += 1
            parts.append(text)
            length += len(text)
            pen += gap + advance - after
            end = pen if spread else pen - self.char  # what spaces letters stands behind the last one, too
            low, high = min(low, left, end), max(high, left, end)  # of a negative size glyphs go left
            gap, blank = after, False
        if parts or blank:
            self.emit(trm, [*parts, " " * blank], low, high, pen < start, font, gaps)
        shift = (pen + gap) * self.stretch
        a, b, c, d, e, f = self.tm
        self.tm = (a, b, c, d, e + shift * a, f + shift * b)

    def margins(self, font: Font, text: str) -> tuple[float, float]:
        """How far the spaces before and after the first and the last visible glyph reach."""
        if not (text[0].isspace() or text[-1].isspace()):
            return 0.0, 0.0
        space = font.space * self.size + self.char + self.word * (font.codec is None)
        return (len(text) - len(text.lstrip())) * space, (len(text) - len(text.rstrip())) * space

    def emit(
        self, trm: Matrix, parts: list[str], low: float, high: float, leftwards: bool, font: Font,
        gaps: Sequence[tuple[int, float, float]],
    ) -> None:  # fmt: skip
        """Adds the run that the parts make; `gaps` are `Run.gaps` in text space, before Tz."""
        a, b, c, d, e, f = trm
        e, f = e + self.rise * c, f + self.rise * d
        start, end = (self.stretch * at for at in ((high, low) if leftwards else (low, high)))
        along = math.hypot(a, b) or 1e-9
        sign = math.copysign(1.0, self.size * self.stretch)
        height, scale = self.size * font.height, self.stretch * along
        self.runs.append(
            Run(
                "".join(parts),
                *(e + start * a, f + start * b, e + end * a, f + end * b),
                *(sign * a / along, sign * b / along, height * c, height * d),
                em=abs(height * self.stretch) * along,
                size=abs(height) * math.hypot(c, d),
                face=font.face,
                gaps=() if leftwards else tuple((n, (x - low) * scale, (y - low) * scale) for n, x, y in gaps),
            )
        )


def _matrix(m: Iterable[Any]) -> Matrix:
    a, b, c, d, e, f = (float(v) for v in m)
    return a, b, c, d, e, f


def _pieces(items: Iterable[Any], step: int) -> Iterator[Any]:
    """The strings and numbers of a TJ. A string with a wide blank in it becomes several, to keep its cells apart;
    with a `step` it becomes one for so many bytes."""
    for item in items:
        if step and isinstance(item, bytes):
            yield from (item[i : i + step] for i in range(0, len(item), step))
        elif isinstance(item, bytes) and b"    " in item:
            yield from (piece for piece in _BLANKS.split(item) if piece)
        else:
            yield item
