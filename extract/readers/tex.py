"""What TeX's mathematical fonts show, by code, where a PDF doesn't say: they come with glyph names of their own.

Six layouts, those of Computer Modern and Latin Modern (D. Knuth, The TeXbook, appendix F) and two of the American
Mathematical Society's. pypdf knows most of the names, PDFium few: it shows ′ as 0, ‖ as k and ∑ as P.
"""

import re
import unicodedata

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_ITALIC = f"ΓΔΘΛΞΠΣΥΦΨΩαβγδϵζηθικλµνξπρστυφχψωεϑϖϱςϕ↼↽⇀⇁↪↩▷◁0123456789.,</>⋆∂{_LETTERS}♭♮♯⌣⌢ℓ{_LETTERS.lower()}ıȷ℘⃗⁀"
_SYMBOLS = (
    "−·×∗÷⋄±∓⊕⊖⊗⊘⊙○∘•≍≡⊆⊇≤≥⪯⪰∼≈⊂⊃≪≫≺≻←→↑↓↔↗↘≃⇐⇒⇑⇓⇔↖↙∝′∞∈∋∆▽⁄↦∀∃¬∅ℜℑ⊤⊥"
    f"ℵ{_LETTERS}∪∩⊎∧∨⊢⊣⌊⌋⌈⌉{{}}⟨⟩|‖↕⇕\\≀√⨿∇∫⊔⊓⊑⊒§†‡¶♣♢♡♠"
)
_LARGE = (
    "()[]⌊⌋⌈⌉{}⟨⟩⏐‖/\\()()[]⌊⌋⌈⌉{}⟨⟩/\\()[]⌊⌋⌈⌉{}⟨⟩/\\/\\⎛⎞⎡⎤⎣⎦⎢⎥⎧⎫⎩⎭⎨⎬⎪⏐"
    "⎝⎠⎜⎟⟨⟩⊔⊔∮∮⊙⊙⊕⊕⊗⊗∑∏∫⋃⋂⊎⋀⋁∑∏∫⋃⋂⊎⋀⋁∐∐ˆˆˆ˜˜˜[]⌊⌋⌈⌉{}√√√√√  ‖↑↓    ⇑⇓"
)
_AMS_A = (
    "⊡⊞⊠□■·◊⧫↻↺⇌⇋⊟⊩⊪⊨↠↞⇇⇉⇈⇊↾⇂↿⇃↣↢⇆⇄↰↱⇝↭↫↬≗≿≳⪆⊸∴∵≑≜≾≲⪅⪕⪖⋞⋟≼≦⩽≶‵ ≓≒≽≧⩾≷"
    "⊏⊐⊳⊲⊵⊴★≬▼▶◀  △▲▽≖⋚⋛⪋⪌¥⇛⇚✓⊻⊼⩞∠∡∢∝⌣⌢⋐⋑⋒⋓⋏⋎⋋⋌⫅⫆≏≎⋘⋙⌜⌝®Ⓢ⋔∔∽≌⌞⌟✠∁⊺⊚⊛⊝"
)
_AMS_B = (
    f"≨≩≰≱≮≯⊀⊁≨≩≰≱⪇⪈⋠⋡⋨⋩⋦⋧≰≱⪵⪶⪹⪺⪉⪊≁≇╱╲⊊⊋⊈⊉⫋⫌⫋⫌⊊⊋⊈⊉∦∤∤∦⊬⊮⊭⊯⋭⋬⋫⋪↚↛⇍⇏⇎↮⋇∅∄{_LETTERS}ˆˆ˜˜ Ⅎ⅁    ℧ð≂ℶℷℸ⋖⋗⋉⋊∣∥∖∼≈≊⪸⪷↶↷ϝϰkℏℏ϶"
)
_LAYOUTS = (
    (re.compile(r"\bCM(R|BX|BXTI|CSC|SL|SS|SSBX|TI)\d"), "ΓΔΘΛΞΠΣΥΦΨΩ"),
    (re.compile(r"\bCMM(I|IB)\d|\bLMMathItalic"), _ITALIC),
    (re.compile(r"\bCMB?SY\d|\bLMMathSymbols"), _SYMBOLS),
    (re.compile(r"\bCMEX\d|\bLMMathExtension"), _LARGE),
    (re.compile(r"\bMSAM\d"), _AMS_A),
    (re.compile(r"\bMSBM\d"), _AMS_B),
)
# TeX strikes a relation through, and gives arrows their other end, with a glyph before them.
RELATIONS = "=∈∋<>≤≥≡∼≈≃⊂⊃⊆⊇∥∣→←⇒⇔⊢≺≻"
_STRUCK = re.compile(f"⁄([{RELATIONS}])")
_TAILS = (("↦→", "↦"), ("↪→", "↪"), ("←↩", "↩"))


def symbols(font: str) -> str:
    """The characters of a font by code, from 0 on; of a font that isn't TeX's none."""
    return next((layout for name, layout in _LAYOUTS if name.search(font)), "")


def composed(text: str) -> str:
    """A text with relations and arrows that were drawn in two parts as one character each: ⁄= as ≠."""
    if "⁄" in text:
        text = _STRUCK.sub(lambda m: unicodedata.normalize("NFC", m[1] + "\u0338"), text)
    for parts, whole in _TAILS:
        text = text.replace(parts, whole)
    return text
