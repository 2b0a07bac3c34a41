"""Values of form fields that a file leaves to viewers to draw (PDF 32000-1, 12.7.3.3), set where PDFium sets them."""

import re
from dataclasses import dataclass
from typing import Any

from e2erag.extract.readers.pdf_objects import Font, get, text_of

ASCENT, LEADING = 0.945, 1.169  # ems: of the first line below the field's edge, and from line to line
SIZES = (4, 6, 8, 9, 10, 12, 14, 18, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70, 80, 90, 100, 110, 120, 130, 144)
"""Points: of a field that tells no size the largest that fits, of several lines one of the first six."""
PARENTS = 20  # fields that a field is part of

MULTILINE, PASSWORD, PUSHED, COMBO = 1 << 12, 1 << 13, 1 << 16, 1 << 17  # of a field's flags

_FONT = re.compile(r"/(\S+)\s+(-?[\d.]+)\s+Tf")


@dataclass(frozen=True)
class Field:
    """What a field holds, and how it is to be set: in points from the left and bottom of the page's user space."""

    text: str
    font: str  # its name among the form's resources
    size: float  # 0: what fits
    left: float
    bottom: float
    right: float
    top: float
    multiline: bool
    place: int  # 0 left, 1 centred, 2 right

    @classmethod
    def of(cls, annotation: Any, form: Any) -> "Field | None":
        """A text field or a choice with a value; None for others."""
        kind, flags = _inherited(annotation, "/FT"), int(_inherited(annotation, "/Ff") or 0)
        if not (kind == "/Tx" or (kind == "/Ch" and flags & COMBO)):
            return None
        text = text_of(_inherited(annotation, "/V"))
        for option in _inherited(annotation, "/Opt") or () if kind == "/Ch" else ():
            pair = option.get_object()
            if isinstance(pair, list) and len(pair) == 2 and text_of(pair[0].get_object()) == text:
                text = text_of(pair[1].get_object())
                break
        text = text[: int(_inherited(annotation, "/MaxLen") or len(text))]
        text = "*" * len(text) if flags & PASSWORD else text
        if not text.strip():
            return None
        looks = _FONT.search(text_of(_inherited(annotation, "/DA") or get(form, "/DA", "")))
        font, size = looks.groups() if looks else ("Helv", 0)
        border = get(annotation, "/Border", (0, 0, 1))
        wide = float(get(get(annotation, "/BS", {}), "/W", border[2] if len(border) > 2 else 1))
        (x0, x1), (y0, y1) = (sorted(map(float, get(annotation, "/Rect")[i::2])) for i in (0, 1))
        edges = x0 + wide, y0 + wide, x1 - wide, y1 - wide
        place = int(_inherited(annotation, "/Q") or get(form, "/Q", 0))
        return cls(text, f"/{font}", abs(float(size)), *edges, bool(flags & MULTILINE), place)

    def placed(self, font: Font) -> tuple[float, list[tuple[str, float, float, float]]]:
        """The size, and every line with where it begins on which baseline and how wide it is."""
        room, high = self.right - self.left, self.top - self.bottom
        codes = {text: code for code, text in font.texts.items()}

        def width(text: str) -> float:
            return sum((font.widths[codes[c]] if c in codes else 0.5 for c in text), 0.0)

        size = self.size
        if not size:
            whole = width(self.text)
            fitting = [s for s in SIZES if whole * s <= room and LEADING * s <= high]
            if self.multiline:
                fitting = [s for s in SIZES[:6] if LEADING * s * len(self.lines(width, room / s)) <= high]
            size = float((fitting or SIZES)[-1 if fitting else 0])
        lines = self.lines(width, room / size)
        y = self.top - ASCENT * size if self.multiline else (self.top + self.bottom - (2 * ASCENT - LEADING) * size) / 2
        out = []
        for line in lines:
            wide = width(line) * size
            x = self.left + max(room - wide, 0.0) * self.place / 2
            out.append((line, x, y, wide))
            y -= LEADING * size
        return size, [line for line in out if line[0].strip()]

    def lines(self, width: Any, room: float) -> list[str]:
        """The text's lines, wrapped at `room` ems where there may be several."""
        if not self.multiline:
            return [" ".join(self.text.split())]
        out, space = [], width(" ")
        for paragraph in self.text.splitlines():
            words, first, wide = paragraph.split(), 0, 0.0
            for n, word in enumerate(words):
                wide += width(word)
                if first < n and wide + space * (n + 1 < len(words)) > room:
                    out.append(" ".join(words[first:n]))
                    first, wide = n, width(word)
                wide += space
            out.append(" ".join(words[first:]))
        return out


def pressed(annotation: Any) -> bool:
    """Whether a field is a button to press, whose old picture PDFium doesn't show either."""
    return _inherited(annotation, "/FT") == "/Btn" and bool(int(_inherited(annotation, "/Ff") or 0) & PUSHED)


def _inherited(field: Any, key: str) -> Any:
    """An entry of a field, or of one that it is part of."""
    for _ in range(PARENTS):
        value, parent = get(field, key), get(field, "/Parent")
        if value is not None or parent is None:
            return value
        field = parent
    return None
