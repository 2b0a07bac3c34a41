"""An article laid out on pages, with the boilerplate that its kind of document has."""

import re
from collections import Counter, deque
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import NamedTuple

from printed.articles import Article
from printed.faces import Face, Look, bold_of, wrap
from printed.phrases import KINDS, NOTES, PHRASES

from e2erag.extract import Box

UNSEEN = 1000
"""Seeds from here on draw a third of each kind of phrase that smaller seeds never draw, and leave out another third."""


class Print(NamedTuple):
    """A line to be drawn: its pieces and where each begins, its baseline from the top, the points added to a space."""

    pieces: tuple[tuple[float, str], ...]
    y: float
    face: Face
    role: str
    paragraph: str | None = None
    ends: str = " "
    stretch: float = 0.0
    turned: bool = False


class _Text(NamedTuple):
    """A line of a paragraph, before it has a place."""

    text: str
    paragraph: str
    ends: str
    first: bool
    stretch: float


@lru_cache(maxsize=8)
def _set(article: Article, look: Look) -> list[_Text]:
    """Every paragraph broken into lines."""
    texts = []
    for paragraph in article.paragraphs:
        lines = wrap(paragraph.text, look.body, look.column, look.indent, look.hyphens)
        for i, (text, ends) in enumerate(lines):
            spare = look.column - look.body.width(text) - (0 if i else look.indent)
            stretch = spare / max(text.count(" "), 1)
            even = look.justified and i < len(lines) - 1 and stretch < 0.8 * look.body.size
            texts.append(_Text(text, paragraph.id, ends, i == 0, stretch if even and " " in text else 0.0))
    return texts


class _Note(NamedTuple):
    role: str
    boxed: bool
    centred: bool
    lines: list[tuple[str, Face]]
    picture: float = 0.0  # height of the picture above the lines

    @property
    def height(self) -> float:
        return self.picture + sum(face.leading for _, face in self.lines) + 12.0


class Sheet:
    """A document being laid out: `pages` is what is printed, `boxes` what is shaded, both page by page."""

    def __init__(self, article: Article, look: Look, seed: int, others: Sequence[Article], pages: int) -> None:
        self.look, self.texts = look, deque(_set(article, look))
        self.others = [a for a in others if a.title != article.title]
        self.bare = pages == 0  # text alone
        self.rng = rng = Random(f"{seed} {article.title}")
        self.pages: list[list[Print]] = []
        self.boxes: list[list[Box]] = []
        self.deferred: list[Print] = []
        self.pending: _Note | None = None
        self.count: Counter[bool] = Counter()
        skipped = 0 if seed >= UNSEEN else 2
        self.phrases = {kind: [p for i, p in enumerate(ps) if i % 3 != skipped] or ps for kind, ps in PHRASES.items()}
        self.standing: dict[str, str] = {}
        site = rng.choice(self.phrases["site"])
        plain = re.sub(r"\W+", "-", site.removeprefix("The ").lower())
        self.known = {
            "title": article.title, "site": site, "host": f"{plain}.example", "pages": str(pages), "page": "0",
            "slug": re.sub(r"\W+", "-", article.title.lower()).strip("-"), "volume": str(rng.randint(2, 88)),
            "issue": str(rng.randint(1, 12)), "year": str(rng.randint(1998, 2024)), "date": _day(rng),
            "time": f"{rng.randint(7, 22)}:{rng.randint(10, 59)}", "id": str(rng.randint(1000, 99999)),
        }  # fmt: skip

    def value(self, name: str) -> str:
        """What stands for `{name}` in a phrase; what isn't known of the document is new every time."""
        rng = self.rng
        if name in self.known:
            return self.known[name]
        if name == "other":
            return rng.choice(self.others).title if self.others else rng.choice(self.phrases["topic"])
        if name == "teaser":
            told = rng.choice(rng.choice(self.others).paragraphs).text if self.others else self.say("caption")
            return " ".join(told.split()[: rng.randint(14, 40)]) + "..."
        return {
            "n": lambda: str(rng.randint(2, 9)),
            "m": lambda: str(rng.randint(11, 999)),
            "day": lambda: _day(rng),
            "past": lambda: str(rng.randint(1880, 1995)),
            "price": lambda: f"{rng.randint(4, 80)}.{rng.choice(('00', '50', '95'))}",
        }[name]()

    def say(self, kind: str, standing: bool = False) -> str:
        """A phrase; a standing one is chosen once for the document."""
        phrase = self.rng.choice(self.phrases[kind])
        if standing:
            phrase = self.standing.setdefault(kind, phrase)
        return re.sub(r"\{(\w+)\}", lambda match: self.value(match[1]), phrase)

    def print(self, line: Print, late: bool = False) -> None:
        (self.deferred if late else self.pages[-1]).append(line)
        self.count[line.role == "text"] += 1

    def furniture(self, kind: str, y: float, role: str, centred: bool = False) -> float:
        """Standing lines across the page from baseline `y` on; returns the baseline after them."""
        look, face = self.look, self.look.fine
        across = look.width - 2 * look.margin
        left, _, right = (part.strip() for part in self.say(kind, standing=True).partition(" // "))
        if right:
            begins = look.width - look.margin - face.width(right)
            while face.width(left) > begins - look.margin - 2 * face.size and " " in left:
                left = left.rsplit(" ", 1)[0].removesuffix("...") + "..."
            self.print(Print(((look.margin, left), (begins, right)), y, face, role))
            return y + face.leading
        for text, _ in wrap(left, face, across, hyphens=False):
            x = look.margin + (across - face.width(text)) / 2 * centred
            self.print(Print(((x, text),), y, face, role))
            y += face.leading
        return y

    def note(self, width: float) -> _Note:
        """Something that interrupts the text, broken into lines of `width` points."""
        role, boxed, parts = NOTES[self.rng.choice(KINDS[self.look.style])]
        face, lines = self.look.small, []
        for kind, fewest, most in parts:
            bold = face._replace(font=bold_of(face.font)) if kind.endswith("label") else face
            for _ in range(self.rng.randint(fewest, most)):
                wrapped = wrap(self.say(kind), bold, width - 12 * boxed, hyphens=self.look.hyphens)
                lines += [(text, bold) for text, _ in wrapped]
        picture = self.rng.uniform(40, 120) if role == "caption" and self.rng.random() < 0.6 else 0.0
        return _Note(role, boxed, self.rng.random() < 0.3, lines, picture)

    def place(self, note: _Note, x: float, y: float, width: float, late: bool = False) -> float:
        """Prints a note with its upper edge at `y`; returns its lower edge."""
        if note.boxed:
            self.boxes[-1].append(Box(x, y + 3, x + width, y + note.height - 3))
        elif note.picture:
            self.boxes[-1].append(Box(x, y + 6, x + width, y + note.picture))
        bottom, inset = y + note.height, 6 * note.boxed
        y += 6 + note.picture
        for text, face in note.lines:
            spare = width - 2 * inset - face.width(text)
            at = x + inset + spare / 2 * note.centred
            self.print(Print(((at, text),), y + 0.78 * face.size, face, note.role), late)
            y += face.leading
        return bottom

    def due(self, coming: int = 0, share: float | None = None) -> float:
        """How many lines that aren't text are missing to their share, were `coming` lines of text printed now."""
        return (share or self.look.share) * (self.count.total() + coming) - self.count[False]

    def interrupt(self, x: float, y: float, bottom: float) -> float:
        """A note or two at `y`, if it is time for one and it fits; returns where the text goes on."""
        look = self.look
        if self.bare:
            return y
        for _ in range(2):
            if self.pending is None and self.due(share=look.share * (0.6 if look.side else 1)) > self.rng.uniform(0, 5):
                self.pending = self.note(look.column)
            if self.pending and y + self.pending.height + 2 * look.body.leading < bottom:
                y = self.place(self.pending, x, y, look.column, look.late)
                self.pending = None
        return y

    def pour(self, x: float, top: float, bottom: float) -> None:
        """Fills a column with text, and with what interrupts it."""
        look, body = self.look, self.look.body
        y = self.interrupt(x, top, bottom)
        while self.texts:
            text, paragraph, ends, first, stretch = self.texts[0]
            if first and y > top:
                y = self.interrupt(x, y + look.gap, bottom)
                if not self.bare and look.headings and self.rng.random() < 0.25 and y + 4 * body.leading < bottom:
                    bold = body._replace(font=bold_of(body.font))
                    self.print(Print(((x, self.say("section")),), y + 0.9 * body.leading + 4, bold, "heading"))
                    y += 1.2 * body.leading + 6
            if y + body.leading > bottom:
                return
            self.texts.popleft()
            at = x + look.indent * first
            self.print(Print(((at, text),), y + 0.78 * body.size, body, "text", paragraph, ends, stretch))
            y += body.leading

    def sidebar(self, top: float, bottom: float, coming: int) -> None:
        """Notes in the sidebar, as many as are due; `coming` lines of text are still to come on this page."""
        if self.bare or self.look.side is None:
            return
        (x, width), y = self.look.side, top + self.rng.uniform(0, 40)
        while self.due(min(coming, len(self.texts))) > 4:
            note = self.note(width)
            if y + note.height > bottom:
                break
            y = self.place(note, x, y, width) + self.rng.uniform(0, 30)

    def open(self) -> float:
        """A new page and what stands at its head; returns where the text begins."""
        look = self.look
        self.pages.append([])
        self.boxes.append([])
        self.known["page"] = str(len(self.pages))
        top = look.margin + 8
        if not self.bare:
            y = self.furniture(f"{look.style} head", look.margin - 24, "header")
            if look.style == "report":
                self.furniture("confidential", y + 2, "header", centred=True)
        if len(self.pages) == 1:
            face = Face(bold_of(look.body.font), 2 * look.body.size, 2.4 * look.body.size)
            for text, _ in wrap(self.known["title"], face, look.width - 2 * look.margin, hyphens=False):
                self.print(Print(((look.margin, text),), top + face.size, face, "heading"))
                top += face.leading
            top += look.body.leading
        return top

    def close(self) -> None:
        """What stands at the foot of the page, after what was put off."""
        look = self.look
        self.pages[-1] += self.deferred
        self.deferred = []
        if self.bare:
            return
        y = look.height - look.margin + 4
        if look.turned:
            text = self.say("download", standing=True)
            x, y0 = look.width - 16, (look.height + look.fine.width(text)) / 2
            self.print(Print(((x, text),), y0, look.fine, "notice", turned=True))
        elif look.style != "magazine":
            y = self.furniture("download", y, "footer")
        if look.style == "magazine":
            y = self.furniture("cookies", y, "notice")
        y = self.furniture(f"{look.style} foot", y + 2, "footer")
        if look.style == "report":
            self.furniture("page number", y, "page number", centred=True)

    def lay(self) -> "Sheet":
        """Prints everything, page by page."""
        look = self.look
        bottom = look.height - look.margin - 10
        while self.texts:
            top = self.open()
            coming = int((bottom - top) / look.body.leading) * len(look.left)
            if look.side_first:
                self.sidebar(top, bottom, coming)
            for x in look.left:
                self.pour(x, top, bottom)
            if not look.side_first:
                self.sidebar(top, bottom, 0)
            self.close()
        return self


def _day(rng: Random) -> str:
    month = rng.choice("January February March April May June July August September October November December".split())
    return f"{rng.randint(1, 28)} {month} {rng.randint(2001, 2024)}"
