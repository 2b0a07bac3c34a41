"""The engine of the extra `fast`: PDFium finds the characters, their fonts and places, here they become `Run`s.

PDFium is asked once for a page's whole text, in reading order (right-to-left words too), and then only at the ends of
words: calling into it for every character would take most of the time. It is no thread's to share: one lock.
"""

import ctypes
import math
import re
import threading
from itertools import compress, filterfalse, groupby, pairwise, repeat
from pathlib import Path
from types import TracebackType
from typing import Any

from e2erag.extract.document import ReadError
from e2erag.extract.readers import pdfium_calls as calls
from e2erag.extract.readers.leftwards import RIGHT_TO_LEFT, of_one_glyph, turned
from e2erag.extract.readers.lines import ACCENTS, BACK, CELL, HALVES, SPACE, Face, Run, takes_accent
from e2erag.extract.readers.pdfium_calls import Font, PdfDocument, PdfiumError, pdfium
from e2erag.extract.readers.pdfium_paths import Drawn
from e2erag.extract.readers.shown import IDENTITY, Shown, frame, upright_at
from e2erag.extract.readers.tex import RELATIONS

LOCK = threading.RLock()

OVERHANG = 0.3  # ems that a glyph's ink may reach beyond its advance
WORD = 60  # characters from an accent to its letter at most

_WORD = re.compile(r"[^\s\0]+")
_ACCENT = re.compile(f"[⁄{''.join(ACCENTS)}]")
_LINE = re.compile(r"[^\s\0](?:[^\r\n]*[^\s\0])?")

# A character beyond 16 bits is two halves here, and where PDFium turns a word round, the second one comes first.
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]|[\udc00-\udfff][\ud800-\udbff]")

_UNKNOWN = Face(0.75, -0.22, False)
_Style = tuple[int | None, float, float, float, float, float]  # font, size, and the matrix's a b c d


class PdfiumFile:
    """An open PDF."""

    version = calls.VERSION
    plain = False

    def __init__(self, path: str | Path, data: bytes) -> None:
        with LOCK:
            try:
                self.file = PdfDocument(data)
                if self.file.get_formtype() == pdfium.FORMTYPE_ACRO_FORM:
                    self.file.init_forms()  # draws the values that the file leaves to viewers to draw
            except PdfiumError as error:
                if getattr(error, "err_code", None) == pdfium.FPDF_ERR_PASSWORD:
                    raise ReadError(
                        path, "is encrypted: it opens only with a password; save a copy without one"
                    ) from None
                raise ReadError(path, f"is damaged or cut off ({error}): fetch or export it again") from error

    def __enter__(self) -> "PdfiumFile":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with LOCK:
            self.file.close()

    def __len__(self) -> int:
        return len(self.file)

    @property
    def title(self) -> str:
        with LOCK:
            try:
                return str(self.file.get_metadata_value("Title"))
            except UnicodeDecodeError:  # half a character; a title is not worth a document
                return ""

    def page(self, number: int) -> Any:
        """Page `number`, with what its forms' fields, notes and stamps show as part of it."""
        page = self.file[number - 1]
        if not calls.flattened(page.raw):
            return page
        page.close()
        return self.file[number - 1]

    def shown(self, number: int) -> Shown:
        """What page `number` (from 1) shows."""
        with LOCK:
            page = self.page(number)
            turn = page.get_rotation()
            try:
                shown = _Reading(page, turn).shown()
                upright = upright_at(shown.runs, turn)
                if upright == turn:
                    return shown
                page.set_rotation(upright)
                try:
                    return _Reading(page, turn).shown()
                finally:
                    page.set_rotation(turn)
            finally:
                page.close()

    def picture(self, number: int, dpi: float) -> Any:
        """Page `number` as a PIL image."""
        with LOCK:
            page = self.page(number)
            try:
                return page.render(scale=dpi / 72).to_pil()
            finally:
                page.close()


class _Reading:
    """One page being read."""

    def __init__(self, page: Any, turn: int) -> None:
        """`turn` is how the page is displayed, whatever PDFium is told."""
        box = pdfium.FS_RECTF()
        pdfium.FPDF_GetPageBoundingBox(page.raw, box)
        self.width, self.height, self.base = frame(box.left, box.bottom, box.right, box.top, turn)
        self.page = page
        self.fonts: dict[int, Font] = {}  # by address, which may be another font's on another page
        self.seen: set[int | None] = set()  # text objects that words begin and end with
        self.of_tex = self.named = False  # whether a font of TeX's was met, and what its codes mean is told
        self.runs: list[Run] = []
        self.x, self.y = ctypes.c_double(), ctypes.c_double()
        self.at = ctypes.byref(self.x), ctypes.byref(self.y)
        self.m = pdfium.FS_MATRIX()
        self.m_at = ctypes.byref(self.m)
        self.loose = (ctypes.c_float * 4)()  # left, top, right and bottom of a character's advance and font
        self.loose_at = ctypes.byref(self.loose)
        self.ink = [ctypes.c_double() for _ in range(4)]  # left, right, bottom and top of a character's glyph
        self.ink_at = [ctypes.byref(edge) for edge in self.ink]
        self.left = self.high = self.low = 0.0  # left, top and bottom of the last one that a piece began with
        # How the text object `owner` draws, and the run that was begun: its style, where it starts and ends, its words.
        self.owner: int | None = None
        self.font: Font | None = None
        self.now: _Style = (None, 1.0, 1.0, 0.0, 0.0, 1.0)
        self.em, self.ux, self.uy, self.upright = 1.0, 1.0, 0.0, True
        self.begun: _Style = self.now
        self.begin, self.end = (0.0, 0.0), (0.0, 0.0)
        self.parts: list[str] = []
        self.length, self.gaps = 0, list[tuple[int, float, float]]()  # of the parts; `Run.gaps` so far
        self.marks: dict[int, str] = {}  # accents by the character they belong to

    def shown(self) -> Shown:
        textpage = self.page.get_textpage()
        try:
            self.handle = ctypes.cast(textpage.raw, ctypes.c_void_p)
            text = self.text(textpage)
            if not self.lines(text):
                self.lines(self.told(text))
            raw = ctypes.cast(self.page.raw, ctypes.c_void_p)
            count = pdfium.FPDFPage_CountObjects(self.page.raw)
            objects = map(calls.page_object, repeat(raw), range(count))
            drawn = Drawn(self.width, self.height, self.base, bool(self.runs))
            drawn.objects([*filterfalse(self.seen.__contains__, objects)], IDENTITY, 0)
        finally:
            textpage.close()
        area = self.width * self.height or 1.0
        return Shown(self.width, self.height, self.runs, drawn.rules.merged(), drawn.pictures / area, drawn.mute)

    def text(self, textpage: Any) -> str:
        """The page's characters; `text[i]` is PDFium's character i."""
        count = max(pdfium.FPDFText_CountChars(textpage.raw), 0)
        buffer = (ctypes.c_ushort * (count + 1))()
        pdfium.FPDFText_GetText(textpage.raw, 0, count, buffer)
        text = bytes(buffer)[: 2 * count].decode("utf-16-le", "replace")
        if len(text) != count or "\0" in text or "\ufffd" in text:  # characters without a code, or beyond 16 bits
            text = "".join(map(_character, (calls.unicode(self.handle, i) for i in range(count))))
            text = _PAIR.sub(lambda halves: "".join(sorted(halves[0])), text)
        return text

    # Text

    def lines(self, text: str) -> bool:
        """Adds the runs of the page's text, line by line; False, and nothing, where fonts of TeX's are to be told."""
        if not text.isascii():
            text = self.accented(text)
        leftwards = RIGHT_TO_LEFT.search(text)
        for line in _LINE.finditer(text):
            if leftwards and RIGHT_TO_LEFT.search(line[0]):
                self.leftwards(text, *line.span())
            else:
                self.words(text, *line.span())
            if self.of_tex and not self.named:
                self.runs, self.marks = [], {}
                return False
        return True

    def told(self, text: str) -> str:
        """The text with what fonts of TeX's show of codes that PDFium couldn't make out.

        Where a file has an /Encoding of its own for such a font, of which PDFium doesn't tell, that may be wrong."""
        self.named, out = True, list(text)
        unmapped = map((1).__eq__, map(calls.unmapped, repeat(self.handle), range(len(text))))
        nought = (i for i, char in enumerate(text) if char == "\0")  # of which it isn't told
        for i in (*compress(range(len(text)), unmapped), *nought):
            owner = self.text_object(i)
            if not owner:
                continue
            self.style(owner, i)
            if self.font and ord(text[i]) < len(self.font.symbols):
                char = out[i] = self.font.symbols[ord(text[i])]
                if self.upright and char not in self.font.widths:  # which PDFium tells by character
                    left, _, right, _ = self.loosely(i)
                    self.font.widths[char] = (right - left) / self.em
        return "".join(out)

    def words(self, text: str, begin: int, end: int) -> None:
        """Adds the runs of text[begin:end]: words in one font on one baseline, up to a wide gap."""
        at, handle, seen = begin, self.handle, self.seen
        for word in _WORD.finditer(text, begin, end):
            start, stop = word.span()
            between, at = text[at:start].strip("\0"), stop
            first, last = calls.text_object(handle, start), calls.text_object(handle, stop - 1)
            seen.add(first)
            seen.add(last)
            if self.quick(text, start, stop, first, last, between):
                continue
            if first == last or self.whole(text, start, stop, first, last):
                self.piece(text, start, stop, first, between)
                continue
            for owner, piece in groupby(range(start, stop), self.text_object):
                stop = start + len(list(piece))
                self.piece(text, start, stop, owner, between)
                start, between = stop, ""
        self.flush()

    def quick(self, text: str, start: int, stop: int, first: int | None, last: int | None, between: str) -> bool:
        """Adds text[start:stop] to the run that was begun if it plainly goes on it; else does nothing."""
        if not (self.parts and self.upright and self.now == self.begun) or (self.marks and self.marked(start, stop)):
            return False
        if first != self.owner and calls.font(first) != self.now[0]:
            return False
        span = self.span(text, start, stop)
        if span is None:
            return False
        left, high, right, low = span
        gap, em = left - self.end[0], self.em
        if high != self.high or low != self.low or not -BACK * em < gap <= (CELL if between else 0.05) * em:
            return False
        self.add(" " + text[start:stop] if between else text[start:stop], gap)
        self.owner, self.end = last, (right, self.end[1])
        return True

    def add(self, part: str, gap: float) -> None:
        """Adds a part to the run that was begun, of words that come `gap` points behind it."""
        if part[:1] == " " and self.parts:
            end = (self.end[0] - self.begin[0]) * self.ux + (self.end[1] - self.begin[1]) * self.uy
            self.gaps.append((self.length + 1, end, end + gap))
        self.parts.append(part)
        self.length += len(part)

    def whole(self, text: str, start: int, stop: int, first: int | None, last: int | None) -> bool:
        """Whether several text objects plainly draw one piece; takes the style of the first."""
        self.style(first, start)
        alike = self.upright and not (self.marks and self.marked(start, stop)) and calls.font(last) == self.now[0]
        return alike and self.span(text, start, stop) is not None

    def marked(self, start: int, stop: int) -> bool:
        """Whether one of the characters has an accent."""
        return not self.marks.keys().isdisjoint(range(start, stop))

    def span(self, text: str, start: int, stop: int) -> tuple[float, float, float, float] | None:
        """The box of text[start:stop] if both ends have one height and it is as wide as its characters, or kerned."""
        if not self.font:
            return None
        calls.loose_box(self.handle, start, self.loose_at)
        left, high, right, low = self.loose[:]
        if stop - start > 1:
            calls.loose_box(self.handle, stop - 1, self.loose_at)
            _, top, right, bottom = self.loose[:]
            if top != high or bottom != low:
                return None
        em = self.em
        spare = right - left - sum(map(self.font.widths.__getitem__, text[start:stop])) * em
        if 0.05 * em <= spare < OVERHANG * em:
            spare, right = spare - right, self.right(text, stop - 1)
            spare += right
        if spare >= 0.05 * em or (spare < 0 and -spare >= min(0.04 + 0.012 * (stop - start), 0.16) * em):
            return None  # it isn't kerned that much, and a raised mark is narrower by more
        return left, high, right, low

    def piece(self, text: str, start: int, stop: int, owner: int | None, between: str) -> None:
        """Adds text[start:stop], which one text object draws; `between` stands before it."""
        if owner != self.owner:
            self.style(owner, start)
        x, y, end_x, end_y = self.ends(text, start, stop - 1)
        if self.upright and self.left > x + OVERHANG * self.em:
            x = self.left  # characters of an /ActualText share an origin
        if self.upright and stop - start > 1 and end_x - x > (CELL + 1) * ((stop - start - 1) // 2) * self.em:
            each = _characters(text, start, stop)
            if len(each) > 1 and end_x - x > (CELL + 1) * (len(each) - 1) * self.em:  # so far apart they are cells
                for i, after in pairwise([*each, stop]):
                    self.piece(text, i, after, owner, between if i == start else "")
                return
        dx, dy = x - self.end[0], y - self.end[1]
        gap, off = dx * self.ux + dy * self.uy, abs(dy * self.ux - dx * self.uy)
        level = off <= 0.05 * self.em and -BACK * self.em < gap <= CELL * self.em
        if not (self.parts and level and self.now == self.begun):
            self.flush()
            self.begun, self.begin, gap = self.now, (x, y), 0.0
        if self.upright and end_x < x:  # drawn leftwards, though read from the left
            lefts, _, rights, _ = zip(*map(self.loosely, range(start, stop)), strict=True)
            self.begin, end_x = (min(self.begin[0], *lefts), self.begin[1]), max(rights)
        spaced, wide = bool(between) or gap > SPACE * self.em, end_x - x if self.upright else 0.0
        self.add(self.written(text, start, stop, spaced, wide), gap)
        self.end = end_x, end_y

    def written(self, text: str, start: int, stop: int, spaced: bool, wide: float) -> str:
        """text[start:stop], which takes `wide` points, with its accents and the spaces that PDFium leaves out."""
        word = " " + text[start:stop] if spaced else text[start:stop]
        space = SPACE * self.em
        if not (self.marks and self.marked(start, stop)) and (
            stop - start < 3
            or not self.font
            or wide - sum(map(self.font.widths.__getitem__, text[start:stop])) * self.em < space
            or len(_characters(text, start, stop)) < 3
        ):
            return word
        boxes = [self.loosely(i) for i in range(start, stop)]
        gaps = [-math.inf, *(after[0] - box[2] for box, after in pairwise(boxes))]
        even = min(gaps[1:], default=0.0)  # letters may be spaced, of which PDFium doesn't tell
        space += even if even > space else 0.0
        out = [" " * spaced]
        for i, gap in enumerate(gaps, start):
            out += " " * (self.upright and gap > space), self.marks.get(i, ""), text[i]
        return "".join(out)

    def accented(self, text: str) -> str:
        """Takes TeX's accents and strokes out of the text and notes in `marks` which characters they stand over.

        PDFium sorts what stands on a line by where it begins, so that an accent may come after the word.
        """
        for accent in _ACCENT.finditer(text):
            at = accent.start()
            left, high, right, low = self.loosely(at)
            middle, level, base = (left + right) / 2, (high - low) / 2, self.baseline(at)
            for i in sorted(range(max(at - WORD, 0), min(at + WORD, len(text))), key=lambda i: abs(i - at)):
                if not (text[i] in RELATIONS if text[at] == "⁄" else takes_accent(text[i])):
                    continue
                begin, _, end, _ = self.loosely(i)
                if begin <= middle < end and abs(self.baseline(i) - base) < level:
                    self.marks[i] = text[at]
                    first, stop = at, at + 1  # with the blanks that PDFium puts beside what is off the line
                    while first and text[first - 1] == " " and not self.text_object(first - 1):
                        first -= 1
                    while stop < len(text) and text[stop] == " " and not self.text_object(stop):
                        stop += 1
                    text = text[:first] + "\0" * (stop - first) + text[stop:]
                    break
        return text

    def text_object(self, index: int) -> int | None:
        """What draws a character; nothing draws one that PDFium puts between others."""
        return calls.text_object(self.handle, index)

    def loosely(self, index: int) -> list[float]:
        """Left, top, right and bottom of a character's advance and font, in user space."""
        calls.loose_box(self.handle, index, self.loose_at)
        return self.loose[:]

    def baseline(self, index: int) -> float:
        """Where a character stands, in user space."""
        calls.origin(self.handle, index, *self.at)
        return self.y.value

    def style(self, owner: int | None, index: int) -> None:
        """Takes font, size and matrix from the text object of character `index`."""
        self.owner = owner
        address = calls.font(owner) if owner else None
        if address and address not in self.fonts:
            self.fonts[address] = Font(address)
            self.of_tex |= bool(self.fonts[address].symbols)
        if address:
            self.font = self.fonts[address]
        m, size = self.m, calls.size(self.handle, index)
        calls.matrix(self.handle, index, self.m_at)
        now = (address, size, m.a, m.b, m.c, m.d)
        if now != self.now:
            self.now = now
            along = math.copysign(math.hypot(m.a, m.b) or 1e-9, size)
            self.em, self.ux, self.uy = abs(size * along) or 1e-9, m.a / along, m.b / along
            self.upright = m.b == 0 and m.c == 0 and m.a > 0

    def ends(self, text: str, first: int, last: int) -> tuple[float, float, float, float]:
        """Where character `first` begins on the baseline and `last` ends, in user space."""
        calls.origin(self.handle, first, *self.at)
        x, y = self.x.value, self.y.value
        calls.loose_box(self.handle, first, self.loose_at)
        self.left, self.high, _, self.low = self.loose[:]
        if self.upright:
            return x, y, self.right(text, last), y
        calls.origin(self.handle, last, *self.at)
        wide = (self.font.widths[text[last]] if self.font else 0.5) * self.em
        if HALVES.match(text[last]):  # whose width PDFium doesn't tell
            left, top, right, bottom = self.loosely(last)
            wide = abs((right - left) * self.ux) + abs((top - bottom) * self.uy)
        return x, y, self.x.value + wide * self.ux, self.y.value + wide * self.uy

    def right(self, text: str, index: int) -> float:
        """Where an upright character's advance ends. PDFium's box holds its ink as well, and an italic f leans out."""
        calls.loose_box(self.handle, index, self.loose_at)
        left, _, right, _ = self.loose[:]
        if self.font:
            more = right - left - self.font.widths[text[index]] * self.em
            if abs(more) > 0.02 * self.em and self.inked(index):
                calls.origin(self.handle, index, *self.at)
                bearing = left - self.x.value
                return float(right + bearing) if 0 < bearing < OVERHANG * self.em else float(right)
            if 0.02 * self.em < more < OVERHANG * self.em:
                calls.origin(self.handle, index, *self.at)
                return min(right, self.x.value + right - left - more)
        return float(right)

    def inked(self, index: int) -> bool:
        """Whether a character's box is its ink, as that of an /ActualText is, which may be of another glyph."""
        calls.char_box(self.handle, index, *self.ink_at)
        left, right, bottom, top = (edge.value for edge in self.ink)
        return self.loose[:] == [left, top, right, bottom]

    def leftwards(self, text: str, begin: int, end: int) -> None:
        """Adds a line with right-to-left words as one run, in the order in which it is read.

        PDFium turns such words round, which is wrong for files that draw them in that order (the glyphs' places tell),
        and with them, where it does, letters of one glyph, which stand as they are read.
        """
        glyphs: list[tuple[float, float, str]] = []  # start and end along the baseline, characters
        place, steps = (0.0, 0.0), 0
        read, first = list(text[begin:end]), begin
        for i in range(begin, end):
            owner = self.text_object(i)
            if not owner or text[i] == "\0":
                continue
            if owner != self.owner:
                self.style(owner, i)
            x, y, end_x, end_y = self.ends(text, i, i)
            if not glyphs:
                self.begun, place = self.now, (x, y)
            along = [(px - place[0]) * self.ux + (py - place[1]) * self.uy for px, py in ((x, y), (end_x, end_y))]
            if glyphs and abs(glyphs[-1][0] - along[0]) < 0.01:  # one glyph, several letters
                letters = of_one_glyph(text[first : i + 1])
                read[first - begin : i - begin + 1] = letters
                glyphs[-1] = *glyphs[-1][:2], letters.replace("\0", "")
                continue
            first = i
            if glyphs and RIGHT_TO_LEFT.match(text[i]) and RIGHT_TO_LEFT.match(text[i - 1]):
                steps += 1 if along[0] > glyphs[-1][0] else -1
            glyphs.append((along[0], along[1], text[i]))
        if not glyphs:
            return
        low, high = min(glyph[0] for glyph in glyphs), max(glyph[1] for glyph in glyphs)
        self.begin = place[0] + low * self.ux, place[1] + low * self.uy
        self.end = place[0] + high * self.ux, place[1] + high * self.uy
        self.parts.append("".join(read).replace("\0", " ") if steps <= 0 else turned(glyphs, SPACE * self.em))
        self.flush()

    def flush(self) -> None:
        """Ends the run that was begun."""
        if not self.parts:
            return
        text, self.parts = "".join(self.parts).replace("\ufffe", "-"), []
        gaps, self.length, self.gaps = tuple(self.gaps), 0, []
        _, size, a, b, c, d = self.begun
        p, q, r, s, t, u = self.base  # `times`, written out: it is done for every word in another font
        a, b, c, d = a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s
        (x, y), (end_x, end_y) = self.begin, self.end
        along, sign = math.hypot(a, b) or 1e-9, math.copysign(1.0, size)
        self.runs.append(
            Run(
                text,
                *(x * p + y * r + t, x * q + y * s + u, end_x * p + end_y * r + t, end_x * q + end_y * s + u),
                *(sign * a / along, sign * b / along, size * c, size * d),
                em=abs(size) * along,
                size=abs(size) * math.hypot(c, d),
                face=self.fonts[self.begun[0]].face if self.begun[0] else _UNKNOWN,
                gaps=gaps,
            )
        )


def _characters(text: str, start: int, stop: int) -> list[int]:
    """Where the characters of text[start:stop] begin; one beyond 16 bits is two halves."""
    return [i for i in range(start, stop) if not "\udc00" <= text[i] <= "\udfff"]


def _character(code: int) -> str:
    """One character, or half of one, for one index; what is no character is a blank that no word has."""
    return chr(code) if 0 < code <= 0x10FFFF else "\0"
