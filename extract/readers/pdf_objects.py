"""What pypdf's objects say: a font's characters and widths, the text of a string, the instructions of a stream."""

import codecs
import importlib
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pypdf.generic import (
    ContentStream,
    DictionaryObject,
    IndirectObject,
    NameObject,
    TextStringObject,
    create_string_object,
)

from e2erag.extract.readers.leftwards import RIGHT_TO_LEFT, one_glyph
from e2erag.extract.readers.lines import PRIVATE
from e2erag.extract.readers.shown import face
from e2erag.extract.readers.tex import symbols

PypdfFont: Any = None
# The only private name of pypdf in this package: its fonts know encodings, ToUnicode maps and glyph widths. Without
# it `usable` is false, and `pdf_pypdf` takes what pypdf's own text extraction says.
for module in ("pypdf.generic._font", "pypdf._font"):  # from 7.0 on, from 6.6 on
    with suppress(ImportError, AttributeError):
        PypdfFont = PypdfFont or importlib.import_module(module).Font

_LANGUAGE = re.compile("\x1b[a-zA-Z]*\x1b")  # which a text may name within itself


class Font:
    """What the walk needs of a font: characters and widths per code, and how it looks."""

    def __init__(self, resource: Any) -> None:
        font = PypdfFont.from_font_resource(resource)
        encoding, mapped, descriptor = font.encoding, font.character_map, font.font_descriptor
        self.resource = resource  # keeps its id(), by which `Walk` knows a font without an object number
        self.scale, self.height = (0.001, 1.0) if font.sub_type != "Type3" else _type3_scale(resource)
        self.face = face(font.name, descriptor.ascent, descriptor.descent, descriptor.flags, descriptor.weight)
        self.codec = encoding if isinstance(encoding, str) else None  # a string: codes of two bytes (mostly)
        self.step = 1 if self.codec is None else 2
        self.decoder = codecs.getdecoder(self.codec or "latin-1")  # twice as fast as bytes.decode for utf-16-be
        utf16 = self.codec is not None and self.codec.lower().startswith("utf")
        self.unit, self.errors = (2, "surrogatepass") if utf16 else (1, "replace")
        self.texts: dict[int, str] = {}
        if isinstance(encoding, dict):
            for code in range(256):
                self.texts[code] = mapped.get(chr(code)) or _glyph(encoding.get(code, chr(code)), code)
        self.texts.update({ord(c): text for c, text in mapped.items() if isinstance(c, str) and len(c) == 1})
        self.texts.update(_encoded(resource))
        # A glyph for several letters (lam and alif).
        leftwards = {code: text for code, text in self.texts.items() if len(text) > 1 and RIGHT_TO_LEFT.search(text)}
        self.phrases = any(" " in text for text in leftwards.values())  # of whole words, which say their own order
        self.texts.update({code: one_glyph(text) for code, text in leftwards.items()})
        own = "/ToUnicode" not in resource and "/Encoding" not in resource  # then TeX's layouts hold
        for code, char in enumerate(symbols(font.name)):
            now = self.texts.get(code, "")
            # A file's code 0 is never read by pypdf; parts of brackets stay Adobe's, as which PDFium shows them.
            if now == "\0" or (own and not PRIVATE.match(now)):
                self.texts[code] = char
        self.widths = _Widths(font.character_widths, self.scale)
        spaces = [code for code, text in self.texts.items() if text == " "]
        known = [code for code in spaces if code in self.widths]
        self.space = self.widths[(known or spaces)[0]] if spaces else 0.25

    def decode(self, raw: bytes) -> tuple[str, float, int]:
        """Text, width in ems, and number of glyphs of a shown string."""
        codes, _ = self.decoder(raw[: len(raw) // self.unit * self.unit], self.errors)
        widths = self.widths
        return codes.translate(self.texts), sum([widths[ord(c)] for c in codes]), len(codes)


class _Widths(dict[int, float]):
    """Ems per code."""

    def __init__(self, widths: dict[str, Any], scale: float) -> None:
        super().__init__({ord(c): float(w) * scale for c, w in widths.items() if len(c) == 1})
        self.default = float(widths["default"]) * scale

    def __missing__(self, code: int) -> float:
        return self.default


def _encoded(resource: Any) -> dict[int, str]:
    """Of a Type 1 font with a file and no map to Unicode, the characters of codes that its own /Encoding names.

    The file has no say in them (ISO 32000-1, 9.6.6.2), and pypdf lets it overrule them."""
    named, descriptor = get(resource, "/Encoding"), get(resource, "/FontDescriptor", {})
    plain = {key: value for key, value in descriptor.items() if not key.startswith("/FontFile")}
    own = named is not None and len(plain) < len(descriptor)
    if not own or "/ToUnicode" in resource or get(resource, "/Subtype") != "/Type1":
        return {}
    bare = DictionaryObject(resource)
    bare[NameObject("/FontDescriptor")] = DictionaryObject(plain)
    encoding = PypdfFont.from_font_resource(bare).encoding
    if not isinstance(encoding, dict):
        return {}
    codes: Iterable[int] = range(256)
    if isinstance(named, DictionaryObject) and "/BaseEncoding" not in named:
        codes, code, changes = [], 0, get(named, "/Differences")
        for entry in changes if isinstance(changes, list) else ():
            if isinstance(entry, int):
                code = entry
            else:
                codes.append(code)
                code += 1
    return {code: text for code in codes if len(text := encoding.get(code, "")) == 1}


def _glyph(text: str, code: int) -> str:
    """A glyph name that means nothing ("/g23") would come out as a word; the code is what other readers show."""
    return chr(code) if len(text) > 1 and text.startswith("/") else text


def _type3_scale(resource: Any) -> tuple[float, float]:
    """Ems per glyph unit, and how high the glyphs of a Type 3 font are in "ems": it may call 1 pt a size of 0.01."""
    matrix = [abs(float(v)) for v in get(resource, "/FontMatrix", (0.001, 0, 0, 0.001, 0, 0))]
    box = [float(v) for v in get(resource, "/FontBBox", (0, 0, 0, 0))]
    height = abs(box[3] - box[1]) * matrix[3]
    return matrix[0], height if height and not 0.5 < height < 2 else 1.0


_HELVETICA = DictionaryObject(
    {NameObject(f"/{key}"): NameObject(f"/{name}") for key, name in (
        ("Type", "Font"), ("Subtype", "Type1"), ("BaseFont", "Helvetica"), ("Encoding", "WinAnsiEncoding"),
    )}
)  # fmt: skip


def font_of(resource: Any) -> Font | None:
    """A font that is missing or broken shows Latin text, as in viewers; one with two-byte codes shows nothing."""
    try:
        return Font(resource)
    except MemoryError:
        raise
    except Exception:
        if isinstance(resource, dict) and get(resource, "/Subtype") == "/Type0":
            return None
        return Font(_HELVETICA)


def get(table: Any, key: str, default: Any = None) -> Any:
    value = table.get(key)
    return default if value is None else value.get_object()


def usable() -> bool:
    """Whether pypdf's fonts are where they are looked for and have what is looked for in them."""
    try:
        return Font(_HELVETICA).decode(b"A ")[0] == "A "
    except (AttributeError, TypeError, KeyError, ValueError):
        return False


def text_of(string: Any) -> str:
    """A text string (PDF 32000-1, 7.9.2.2), as which pypdf gives bytes where it was asked for bytes."""
    text = create_string_object(string) if isinstance(string, bytes) else string
    return _LANGUAGE.sub("", text) if isinstance(text, TextStringObject) else ""


def instructions(content: Any, reader: Any) -> Any:
    """A content stream: `get_data`, `set_data`, and `operations`, each with its operands before it."""
    return ContentStream(content, reader, "bytes")


def entries(value: Any, properties: Any) -> Any:
    """A dictionary, itself or by its name among `properties`; None for anything else."""
    if isinstance(value, NameObject):
        value = get(properties, value) if isinstance(properties, DictionaryObject) else None
    return value if isinstance(value, DictionaryObject) else None


def key_of(entry: Any) -> Any:
    """What a dictionary's entry, `raw_get`, can be known by: the object that it refers to, or itself."""
    return entry if isinstance(entry, IndirectObject) else id(entry)
