"""PDFium's functions as the engine calls them, hundreds of times for a page: with as little around them as can be."""

import ctypes
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from e2erag.extract.readers.lines import Face
from e2erag.extract.readers.shown import UNSEEN, face
from e2erag.extract.readers.tex import symbols

PdfDocument, PdfiumError = pypdfium2.PdfDocument, pypdfium2.PdfiumError
VERSION = f"pypdfium2 {pypdfium2.PYPDFIUM_INFO.version}"

# What Adobe's metrics say of the fonts that every viewer has; PDFium tells what its stand-ins have instead.
_STANDARD = {"Helvetica": (718, -207), "Times": (683, -217), "Courier": (629, -157)}


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """PDFium's function with plain addresses for handles: a third as slow to call as with typed pointers.

    Without `arguments` handles are `c_void_p`, numbers are C ints and results go to a `byref`: less again.
    """
    return ctypes.PYFUNCTYPE(result, *arguments)(ctypes.cast(getattr(pdfium, name), ctypes.c_void_p).value or 0)


_HANDLE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
text_object = _function("FPDFText_GetTextObject", _HANDLE)
origin = _function("FPDFText_GetCharOrigin", _INT)
loose_box = _function("FPDFText_GetLooseCharBox", _INT)
char_box = _function("FPDFText_GetCharBox", _INT)
matrix = _function("FPDFText_GetMatrix", _INT)
size = _function("FPDFText_GetFontSize", ctypes.c_double)
unicode = _function("FPDFText_GetUnicode", ctypes.c_uint)
unmapped = _function("FPDFText_HasUnicodeMapError", _INT)
page_object = _function("FPDFPage_GetObject", _HANDLE)
font = _function("FPDFTextObj_GetFont", _HANDLE, _HANDLE)
glyph_width = _function("FPDFFont_GetGlyphWidth", _INT, _HANDLE, ctypes.c_uint32, _FLOAT, _HANDLE)
form_object = _function("FPDFFormObj_GetObject", _HANDLE, _HANDLE, ctypes.c_ulong)
kind = _function("FPDFPageObj_GetType", _INT, _HANDLE)
object_matrix = _function("FPDFPageObj_GetMatrix", _INT, _HANDLE, _HANDLE)
bounds = _function("FPDFPageObj_GetBounds", _INT, _HANDLE, *[_HANDLE] * 4)
draw_mode = _function("FPDFPath_GetDrawMode", _INT, _HANDLE, _HANDLE, _HANDLE)
segment_count = _function("FPDFPath_CountSegments", _INT, _HANDLE)
segment = _function("FPDFPath_GetPathSegment", _HANDLE, _HANDLE, _INT)
segment_kind = _function("FPDFPathSegment_GetType", _INT, _HANDLE)
segment_point = _function("FPDFPathSegment_GetPoint", _INT, _HANDLE, _HANDLE, _HANDLE)
segment_closes = _function("FPDFPathSegment_GetClose", _INT, _HANDLE)
stroke_width = _function("FPDFPageObj_GetStrokeWidth", _INT, _HANDLE, _HANDLE)


ANNOTATIONS = (pdfium.FPDF_ANNOT_WIDGET, pdfium.FPDF_ANNOT_FREETEXT, pdfium.FPDF_ANNOT_STAMP)


def flattened(page: Any) -> bool:
    """Makes what annotations with words of their own show a part of the page, and takes the others away; whether there
    were such. The page has to be opened again then."""
    others, count = [], pdfium.FPDFPage_GetAnnotCount(page)
    for i in range(count):
        annotation = pdfium.FPDFPage_GetAnnot(page, i)
        shown = annotation and not pdfium.FPDFAnnot_GetFlags(annotation) & UNSEEN
        if not (shown and pdfium.FPDFAnnot_GetSubtype(annotation) in ANNOTATIONS):
            others.append(i)
        pdfium.FPDFPage_CloseAnnot(annotation)
    if len(others) == count:  # most pages: with links, or nothing
        return False
    for i in reversed(others):
        pdfium.FPDFPage_RemoveAnnot(page, i)
    return bool(pdfium.FPDFPage_Flatten(page, pdfium.FLAT_NORMALDISPLAY) == pdfium.FLATTEN_SUCCESS)


class Font:
    """A font's looks, and its glyphs' widths in ems by character."""

    def __init__(self, handle: int) -> None:
        up, down, name = ctypes.c_float(), ctypes.c_float(), ctypes.create_string_buffer(256)
        typed = ctypes.cast(handle, pdfium.FPDF_FONT)
        pdfium.FPDFFont_GetAscent(typed, 1000.0, up)
        pdfium.FPDFFont_GetDescent(typed, 1000.0, down)
        pdfium.FPDFFont_GetBaseFontName(typed, name, len(name))
        base = name.value.decode("utf-8", "replace")
        bare = pdfium.FPDFFont_GetWeight(typed) == 0 and pdfium.FPDFFont_GetIsEmbedded(typed) != 1  # no descriptor
        standard = _STANDARD.get(base.split("-")[0]) if bare else None
        ascent, descent = standard or (up.value, down.value)
        self.face: Face = face(base, ascent, descent, pdfium.FPDFFont_GetFlags(typed))
        self.widths = _Widths(handle)
        self.symbols = symbols(base)  # of TeX's fonts, by code


class _Widths(dict[str, float]):
    """Filled as they are asked for."""

    def __init__(self, handle: int) -> None:
        super().__init__()
        self.handle = handle

    def __missing__(self, char: str) -> float:
        width = ctypes.c_float()
        glyph_width(self.handle, ord(char), 1.0, ctypes.byref(width))
        self[char] = width.value
        return width.value
