"""Fonts and lines: how wide words are, where they break, and how a document is set."""

import importlib.util
import re
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont

STYLES = ("journal", "report", "magazine")


class Face(NamedTuple):
    """A font's name, its size and its line distance, in points."""

    font: str
    size: float
    leading: float

    def width(self, text: str) -> float:
        return self.size * sum(width_of(word, self.font) for word in text.split(" ")) + text.count(" ") * self.space

    @property
    def space(self) -> float:
        return self.size * width_of(" ", self.font)


@cache
def width_of(word: str, font: str) -> float:
    return pdfmetrics.stringWidth(word, font_of(word, font), 1.0)


@cache
def font_of(word: str, font: str) -> str:
    """`font`, or one with more characters for a word that the standard fonts can't print."""
    try:
        word.encode("cp1252")
        return font
    except UnicodeEncodeError:
        name = "DejaVuSerif" if font.startswith("Times") else "DejaVuSans"
    if name not in pdfmetrics.getRegisteredFontNames():
        found = importlib.util.find_spec("matplotlib")
        if found is None or not found.origin:
            raise ModuleNotFoundError(f"{word!r} needs the fonts that matplotlib brings: pip install matplotlib")
        pdfmetrics.registerFont(TTFont(name, Path(found.origin).parent / f"mpl-data/fonts/ttf/{name}.ttf"))
    return name


@cache
def printable(word: str, font: str) -> str:
    """The word without what can't be seen, and with an empty box for what no font here has."""
    word = re.sub("[\u00ad\u200b-\u200f\ufeff]", "", word)
    name = font_of(word, font)
    if name == font:
        return word
    glyphs = pdfmetrics.getFont(name).face.charToGlyph
    return "".join(c if ord(c) in glyphs else "□" for c in word)


# Between two consonants that vowels surround, and before a few suffixes: what is right most of the time.
_BREAK = re.compile(
    "(?<=[aeiouy][bcdfglmnprstvx])(?=[bcdfgmnpstv][aeiouy])|(?=(?:tion|sion|ment|ness|tive|ture|ship|able|ing)s?$)"
)


@cache
def _breaks(word: str) -> tuple[tuple[str, str, str], ...]:
    """Where a word may be broken, last place first: (before, after, how the line then ends)."""
    own = [(word[: m.end()], word[m.end() :], "") for m in re.finditer(r"(?<=\w\w\w)[-–—/](?=\w\w\w)", word)]
    core = re.fullmatch(r"(\W*)([A-Za-z]{7,})(\W*)", word)
    for match in _BREAK.finditer(core[2]) if core else ():
        at = match.start()
        if 3 <= at <= len(core[2]) - 3:
            own.append((core[1] + core[2][:at] + "-", core[2][at:] + core[3], "-"))
    return tuple(reversed(own))


def wrap(text: str, face: Face, width: float, indent: float = 0.0, hyphens: bool = True) -> list[tuple[str, str]]:
    """The lines of a paragraph, each with how it ends (see `Line.ends`); `width` and `indent` are in points."""
    words = deque(shown for word in text.split() if (shown := printable(word, face.font)))
    lines, line, room = [], "", width - indent
    while words:
        word = words.popleft()
        longer = f"{line} {word}" if line else word
        if face.width(longer) <= room:
            line = longer
            continue
        ends = " "
        for before, after, how in _breaks(word) if hyphens or face.width(word) > width else ():
            longer = f"{line} {before}" if line else before
            if face.width(longer) <= room:
                line, word, ends = longer, after, how
                break
        if not line:  # nothing of the word fits: as many characters as do
            fits = max((n for n in range(1, len(word)) if face.width(word[:n]) <= room), default=1)
            line, word, ends = word[:fits], word[fits:], ""
        lines.append((line, ends))
        words.appendleft(word)
        line, room = "", width
    return [*lines, (line, " ")] if line else lines


def bold_of(font: str) -> str:
    return {"Times-Roman": "Times-Bold", "Helvetica": "Helvetica-Bold"}[font]


@dataclass(frozen=True, slots=True)
class Look:
    """How a document is set; lengths in points. `share` is the part of all lines that isn't text, as aimed at."""

    style: str
    width: float
    height: float
    margin: float
    left: tuple[float, ...]  # where each text column begins
    column: float  # how wide it is
    side: tuple[float, float] | None  # where the sidebar begins, and how wide it is
    side_first: bool
    body: Face
    fine: Face
    small: Face
    indent: float
    gap: float
    share: float
    justified: bool
    hyphens: bool
    headings: bool
    late: bool  # notes are written after the page's text, wherever they stand
    turned: bool  # the download notice stands upright in the margin


def look_of(seed: int, style: str | None) -> Look:
    rng = Random(seed)
    chosen = rng.choice(STYLES)
    style = style or chosen
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    width, height = rng.choice(((595.0, 842.0), (612.0, 792.0)))
    margin = rng.uniform(50, 66)
    across = width - 2 * margin
    gutter, flip = rng.uniform(16, 26), rng.random() < 0.4
    size = rng.uniform(8.6, 9.8) if style == "journal" else rng.uniform(9.6, 11.2)
    column, left, side = across, (margin,), None
    if style == "journal":
        column = (across - gutter) / 2
        left = (margin, margin + column + gutter)
    elif style == "magazine":
        wide = across * rng.uniform(0.25, 0.32)
        column = across - wide - gutter
        left = (margin + (wide + gutter) * flip,)
        side = (margin + (column + gutter) * (not flip), wide)
    body = Face(rng.choice(("Times-Roman", "Helvetica")), size, size * rng.uniform(1.16, 1.34))
    font = rng.choice(("Times-Roman", "Helvetica", body.font))
    note, fine = size * rng.choice((1.0, 1.0, 0.94, 0.86)), rng.uniform(6.8, 8.2)
    indented = rng.random() < 0.5
    return Look(
        style, width, height, margin, left, column, side, flip or rng.random() < 0.3, body,
        Face(font, fine, fine * 1.25), Face(font, note, note * 1.18),
        indent=1.2 * size if indented else 0.0,
        gap=0.0 if indented else 0.6 * size,
        share=rng.uniform(*{"journal": (0.26, 0.36), "report": (0.22, 0.36), "magazine": (0.28, 0.4)}[style]),
        justified=rng.random() < (0.9 if style == "journal" else 0.5),
        hyphens=rng.random() < 0.85,
        headings=rng.random() < 0.3,
        late=rng.random() < 0.25,
        turned=rng.random() < 0.3,
    )  # fmt: skip
