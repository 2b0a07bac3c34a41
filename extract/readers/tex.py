"""What TeX's mathematical fonts show, by code, where a PDF doesn't say: they come with glyph names of their own.

Six layouts, those of Computer Modern and Latin Modern (D. Knuth, The TeXbook, appendix F) and two of the American
Mathematical Society's. PDFium knows few of the names: it shows ′ as 0, ‖ as k and ∑ as P. pypdf knows most, some
wrongly (⊢ and ⊣). Where Adobe's list has a name, both engines take what it says: ∆ for Delta, ♦ for diamond.
"""

import re
import unicodedata

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_ITALIC = f"Γ∆ΘΛΞΠΣΥΦΨΩαβγδϵζηθικλµνξπρστυφχψωεϑϖϱςϕ↼↽⇀⇁↪↩▷◁0123456789.,</>⋆∂{_LETTERS}♭♮♯⌣⌢ℓ{_LETTERS.lower()}ıȷ℘→⁀"
_SYMBOLS = (
    "−·×∗÷⋄±∓⊕⊖⊗⊘⊙©◦•≍≡⊆⊇≤≥⪯⪰∼≈⊂⊃≪≫≺≻←→↑↓↔↗↘≃⇐⇒⇑⇓⇔↖↙∝′∞∈∋△▽⁄↦∀∃¬∅ℜℑ⊤⊥"
    f"ℵ{_LETTERS}∪∩⊎∧∨⊢⊣⌊⌋⌈⌉{{}}⟨⟩|‖↕⇕\\≀√⨿∇∫⊔⊓⊑⊒§†‡¶♣♦♥♠"
)
_LARGE = (
    "()[]⌊⌋⌈⌉{}⟨⟩⏐‖/\\()()[]⌊⌋⌈⌉{}⟨⟩/\\()[]⌊⌋⌈⌉{}⟨⟩/\\/\\⎛⎞⎡⎤⎣⎦⎢⎥⎧⎫⎩⎭⎨⎬⎪⏐"
    "⎝⎠⎜⎟⟨⟩⊔⊔∮∮⊙⊙⊕⊕⊗⊗∑∏∫⋃⋂⊎⋀⋁∑∏∫⋃⋂⊎⋀⋁∐∐ˆˆˆ˜˜˜[]⌊⌋⌈⌉{}√√√√√  ‖↑↓    ⇑⇓"
)
_AMS_A = (
    "⊡⊞⊠□■·◊⧫↻↺⇌⇋⊟⊩⊪⊨↠↞⇇⇉⇈⇊↾⇂↿⇃↣↢⇆⇄↰↱⇝↭↫↬≗≿≳⪆⊸∴∵≑≜≾≲⪅⪕⪖⋞⋟≼≦⩽≶‵ ≓≒≽≧⩾≷"
    "⊏⊐⊳⊲⊵⊴★≬▼▶◀  △▲▽≖⋚⋛⪋⪌¥⇛⇚✓⊻⊼⩞∠∡∢∝⌣⌢⋐⋑⋓⋒⋏⋎⋋⋌⫅⫆≏≎⋘⋙⌜⌝®Ⓢ⋔∔∽⋍⌞⌟✠∁⊺⊚⊛⊝"
)
_AMS_B = (
    f"≨≩≰≱≮≯⊀⊁≨≩≰≱⪇⪈⋠⋡⋨⋩⋦⋧≰≱⪵⪶⪹⪺⪉⪊≁≇╱╲⊊⊋⊈⊉⫋⫌⫋⫌⊊⊋⊈⊉∦∤∤∦⊬⊮⊭⊯⋭⋬⋪⋫↚↛⇍⇏⇎↮⋇∅∄{_LETTERS}ˆˆ˜˜ Ⅎ⅁    ℧ð≂ℶℷℸ⋖⋗⋉⋊∣∥∖∼≈≊⪸⪷↶↷ϝϰkℏℏ϶"
)
_LAYOUTS = (
    (re.compile(r"\bCM(R|BX|BXTI|CSC|SL|SS|SSBX|TI)\d"), "Γ∆ΘΛΞΠΣΥΦΨΩ"),
    (re.compile(r"\bCMM(I|IB)\d|\bLMMathItalic"), _ITALIC),
    (re.compile(r"\bCMB?SY\d|\bLMMathSymbols"), _SYMBOLS),
    (re.compile(r"\bCMEX\d|\bLMMathExtension"), _LARGE),
    (re.compile(r"\bMSAM\d"), _AMS_A),
    (re.compile(r"\bMSBM\d"), _AMS_B),
)
# TeX strikes a relation through, sets © as a circle over a c, and gives arrows their other end: two glyphs each.
RELATIONS = "=∈∋<>≤≥≡∼≈≃≍⊂⊃⊆⊇⊑⊒∥∣→←↔⇒⇔⊢≺≻"
_STRUCK = re.compile(f"⁄([{RELATIONS}])")
_RIGHTS = re.compile(r"\bc©|©c(?!\w*[^\W\d])")
_TAILS = (("↦→", "↦"), ("↪→", "↪"), ("←↩", "↩"))


def symbols(font: str) -> str:
    """The characters of a font by code, from 0 on; of a font that isn't TeX's none."""
    return next((layout for name, layout in _LAYOUTS if name.search(font)), "")


def composed(text: str) -> str:
    """A text with what was drawn in two parts as one character each: ⁄= as ≠."""
    if "⁄" in text:
        text = _STRUCK.sub(lambda m: unicodedata.normalize("NFC", m[1] + "\u0338"), text)
    if "©" in text:
        text = _RIGHTS.sub("©", text)
    for parts, whole in _TAILS:
        text = text.replace(parts, whole)
    return text
