"""How a Word document's paragraphs are set: what its styles say of them, and the numbers of its lists."""

import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"

CHAIN = 20  # styles that are based on one another
LEVELS = 9  # of a list

_HEADING = re.compile(r"heading ([1-9])", re.I)


@dataclass(frozen=True, slots=True)
class Style:
    """How a paragraph or a run is set.

    Attributes:
        heading: its level, 1 to 6, or 0.
        number: the list it is in, "" if in none.
        level: of the list, from 0.
        bold, hidden, raised: of its text, unless a run says otherwise.
        page_break: whether it begins a page.
        section_break: whether what follows begins a page.
    """

    heading: int = 0
    number: str = ""
    level: int = 0
    bold: bool = False
    hidden: bool = False
    raised: bool = False
    page_break: bool = False
    section_break: bool = False

    @property
    def listed(self) -> bool:
        return bool(self.number) and not self.heading


def attribute(node: Any, name: str) -> str | None:
    """An attribute in Word's namespace; None where it or the element is missing."""
    return None if node is None else node.get(W + name)


def on(node: Any) -> bool:
    """Whether a switch is there and on."""
    return node is not None and attribute(node, "val") not in ("0", "false", "off", "none")


class Styles:
    """The styles of a document, by id; each adds to the one that it is based on."""

    def __init__(self, opened: Any) -> None:
        nodes = opened.styles.element.findall(W + "style")
        self.nodes = {attribute(node, "styleId"): node for node in nodes}
        self.usual = next(
            (attribute(n, "styleId") for n in nodes if attribute(n, "type") == "paragraph" and _default(n)), None
        )
        self.named = cache(self._named)

    def of(self, paragraph: Any) -> Style:
        """How a paragraph is set."""
        properties = paragraph.find(W + "pPr")
        if properties is None:
            return self.named(self.usual)
        style = _with(self.named(attribute(properties.find(W + "pStyle"), "val") or self.usual), properties, None)
        section = properties.find(W + "sectPr")
        turns = section is not None and attribute(section.find(W + "type"), "val") not in ("continuous", "nextColumn")
        return replace(style, section_break=turns)

    def run(self, run: Any, paragraph: Style) -> Style:
        """How a run is set in such a paragraph."""
        properties = run.find(W + "rPr")
        if properties is None:
            return paragraph
        for node in self.chain(attribute(properties.find(W + "rStyle"), "val")):
            paragraph = _with(paragraph, None, node.find(W + "rPr"))
        return _with(paragraph, None, properties)

    def chain(self, name: str | None) -> list[Any]:
        """A style's elements, those that it is based on first."""
        out: list[Any] = []
        while name in self.nodes and len(out) < CHAIN:
            out.append(self.nodes[name])
            name = attribute(out[-1].find(W + "basedOn"), "val")
        return out[::-1]

    def _named(self, name: str | None) -> Style:
        style = Style()
        for node in self.chain(name):
            style = _with(style, node.find(W + "pPr"), node.find(W + "rPr"))
            called = attribute(node.find(W + "name"), "val") or ""
            if level := _HEADING.fullmatch(called):
                style = replace(style, heading=min(int(level[1]), 6))
            elif called.lower() == "title":
                style = replace(style, heading=1)
        return style


def _default(node: Any) -> bool:
    """Whether the style is its kind's default."""
    return attribute(node, "default") in ("1", "true", "on")


def _with(style: Style, paragraph: Any, run: Any) -> Style:
    """The style, with what these properties say."""
    said: dict[str, Any] = {}
    if paragraph is not None:
        outline = attribute(paragraph.find(W + "outlineLvl"), "val") or ""
        if outline.isascii() and outline.isdigit():
            said["heading"] = min(int(outline) + 1, 6) if int(outline) < 9 else 0
        number, level = (attribute(paragraph.find(f"{W}numPr/{W}{tag}"), "val") for tag in ("numId", "ilvl"))
        if number is not None:
            said["number"] = "" if number == "0" else number
        if level and level.isascii() and level.isdigit():
            said["level"] = min(int(level), LEVELS - 1)
        if (turn := paragraph.find(W + "pageBreakBefore")) is not None:
            said["page_break"] = on(turn)
    if run is not None:
        for name, tag in (("bold", "b"), ("hidden", "vanish")):
            if (switch := run.find(W + tag)) is not None:
                said[name] = on(switch)
        if (place := attribute(run.find(W + "vertAlign"), "val")) is not None:
            said["raised"] = place == "superscript"
    return replace(style, **said) if said else style


@dataclass(slots=True)
class _Level:
    start: int
    form: str
    text: str  # "%1.%2)"


class Numbers:
    """Counts the items of a document's lists, as Word does: items of one definition go on counting."""

    def __init__(self, opened: Any) -> None:
        parts = [rel.target_part for rel in opened.part.rels.values() if rel.reltype.endswith("/numbering")]
        root = parts[0].element if parts else ()
        self.kinds: dict[str | None, dict[int, _Level]] = {}
        self.lists: dict[str | None, Any] = {}
        for node in root:
            if node.tag == W + "abstractNum":
                self.kinds[attribute(node, "abstractNumId")] = dict(map(_level, node.findall(W + "lvl")))
            elif node.tag == W + "num":
                self.lists[attribute(node, "numId")] = node
        self.counts: dict[str | None, dict[int, int]] = {}
        self.begun: set[str] = set()

    def next(self, style: Style) -> str:
        """What stands before the next paragraph of this style: "•", "3.", "2.1", or nothing."""
        node = self.lists.get(style.number)
        if not style.number or node is None:
            return ""
        kind = attribute(node.find(W + "abstractNumId"), "val")
        levels = self.kinds.get(kind, {})
        counts = self.counts.setdefault(kind, {})
        if style.number not in self.begun:
            self.begun.add(style.number)
            for override in node.findall(W + "lvlOverride"):
                if start := attribute(override.find(W + "startOverride"), "val"):
                    counts[_whole(attribute(override, "ilvl"))] = _whole(start) - 1
        level = levels.get(style.level, _Level(1, "bullet", "•"))
        counts[style.level] = counts.get(style.level, level.start - 1) + 1
        for deeper in [other for other in counts if other > style.level]:
            del counts[deeper]
        if level.form == "bullet":
            return "•"
        if level.form == "none":
            return ""

        def number(found: re.Match[str]) -> str:
            at = int(found[1]) - 1
            other = levels.get(at, level)
            return _written(counts.get(at, other.start), other.form)

        return re.sub("%([1-9])", number, level.text).strip()


def _level(node: Any) -> tuple[int, _Level]:
    start, form, text = (attribute(node.find(W + tag), "val") for tag in ("start", "numFmt", "lvlText"))
    return _whole(attribute(node, "ilvl")), _Level(_whole(start or "1"), form or "decimal", text or "")


def _whole(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 9 else 0


def _written(number: int, form: str) -> str:
    """A number as letters or Roman numerals, if the form says so; else in digits."""
    if form in ("lowerLetter", "upperLetter") and number > 0:
        text = "abcdefghijklmnopqrstuvwxyz"[(number - 1) % 26] * min((number - 1) // 26 + 1, 9)
    elif form in ("lowerRoman", "upperRoman") and 0 < number < 4000:
        text = ""
        for value, letters in _ROMAN:
            text += letters * (number // value)
            number %= value
    else:
        return f"{number:02}" if form == "decimalZero" else str(number)
    return text.upper() if form.startswith("upper") else text


_ROMAN = (
    (1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"),
    (9, "ix"), (5, "v"), (4, "iv"), (1, "i"),
)  # fmt: skip
