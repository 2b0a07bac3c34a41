"""What a text processor inserts by font and code, and how fractions and powers stand on one line."""

import re

# Adobe's encoding of the font Symbol from code 32 on (PDF 32000-1, annex D.5), without the parts of brackets.
_SYMBOL = (
    " !∀#∃%&∋()∗+,−./0123456789:;<=>?≅ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ[∴]⊥_ αβχδεφγηιϕκλμνοπθρστυϖωξψζ{|}∼"
    "                                 €ϒ′≤⁄∞ƒ♣♦♥♠↔←↑→↓°±″≥×∝∂•÷≠≡≈…  ↵ℵℑℜ℘⊗⊕∅∩∪⊃⊇⊄⊂⊆∈∉∠∇®©™∏√⋅¬∧∨⇔⇐⇑⇒⇓◊〈®©™∑"
)
# Of the Wingdings what marks and points, and boxes that are ticked or not.
_WINGDINGS = {
    0x6C: "●", 0x6E: "■", 0x6F: "□", 0x71: "❑", 0x76: "❖", 0xA7: "▪", 0xA8: "☐", 0xD8: "➢", 0xDF: "←", 0xE0: "→",
    0xE1: "↑", 0xE2: "↓", 0xF0: "⇨", 0xFB: "☒", 0xFC: "✓", 0xFD: "☒", 0xFE: "☑",
}  # fmt: skip

_PRIMES = re.compile(r"\s*[′″‴'*∗†‡∘°+−-]*\s*")  # of what is raised, what says enough as it stands
_ATOM = re.compile(r"\s*\w+([.,]\w+)*\s*")


def inserted(font: str | None, code: str | None) -> str:
    """The character of a font's code (hexadecimal, as Word has it, with F000 added or not); "" for what isn't known."""
    try:
        number = int(code or "", 16)
    except ValueError:
        return ""
    private = 0xF000 <= number <= 0xF0FF
    number -= 0xF000 * private
    name = (font or "").casefold()
    if name == "symbol":
        return _SYMBOL[number - 32 : number - 31].strip() if number >= 32 else ""
    if name.startswith(("wingdings", "webdings")):
        return _WINGDINGS.get(number, "") if name == "wingdings" else ""
    return "" if private or not 32 <= number < 0xD800 else chr(number)


def power(text: str, fraction: bool) -> tuple[str, str]:
    """What stands before and after what a formula raises: 10^6, x^(n + 1), 2^(1/2), but f′ and R+."""
    if _PRIMES.fullmatch(text):
        return "", ""
    return ("^(", ")") if fraction or compound(text) else ("^", "")


def is_mark(text: str) -> bool:
    """Whether what is raised is a number or sign, and no part of a word: "2009⁶" is a year and a footnote, "1ˢᵗ" one
    word."""
    return not text.lstrip()[:1].isalpha()


def compound(text: str) -> bool:
    """Whether a numerator or denominator takes brackets on one line: (a + b)/c, but 1/2."""
    return bool(text.strip()) and not _ATOM.fullmatch(text)
