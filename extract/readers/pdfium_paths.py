"""What a page shows beside its text, as PDFium finds it: ruling lines, pictures, glyphs without a character."""

import ctypes
from collections.abc import Iterable, Iterator
from itertools import repeat

from e2erag.extract.document import Box
from e2erag.extract.readers import pdfium_calls as calls
from e2erag.extract.readers.pdfium_calls import pdfium
from e2erag.extract.readers.shown import CURVED, FORM_DEPTH, IDENTITY, SHORT, THICK, Matrix, Point, Rules, times

PATHS = 20_000  # painted paths of a page that are looked at for ruling lines
SEGMENTS = 200  # of one path


class Drawn:
    """Collects it, object by object; `base` leads from user space to displayed coordinates."""

    def __init__(self, width: float, height: float, base: Matrix, has_text: bool) -> None:
        self.base, self.has_text = base, has_text
        self.rules = Rules(width, height)
        self.paths = self.mute = 0
        self.pictures = 0.0  # points
        self.m = pdfium.FS_MATRIX()
        self.m_at = ctypes.byref(self.m)
        self.edges = (ctypes.c_float * 4)()
        self.edges_at = [ctypes.byref(self.edges, 4 * i) for i in range(4)]
        self.modes = ctypes.c_int(), ctypes.c_int()
        self.modes_at = [ctypes.byref(mode) for mode in self.modes]

    def objects(self, handles: Iterable[int], matrix: Matrix, depth: int) -> None:
        """Looks at page objects and into forms; `matrix` leads to the page's user space."""
        for handle in handles:
            kind = calls.kind(handle)
            if kind == pdfium.FPDF_PAGEOBJ_TEXT:
                if not self.has_text and calls.bounds(handle, *self.edges_at):
                    left, bottom, right, top = self.edges[:]
                    self.mute += left < right and bottom < top  # spaces have no size
            elif kind == pdfium.FPDF_PAGEOBJ_PATH:
                if self.paths < PATHS and not self.rules.full:
                    self.paths += 1
                    self.path(handle, matrix)
            elif kind == pdfium.FPDF_PAGEOBJ_IMAGE:
                calls.bounds(handle, *self.edges_at)
                left, bottom, right, top = self.edges[:]
                box = self.displayed(left, bottom, right, top, times(matrix, self.base))
                self.pictures += (box.x1 - box.x0) * (box.y1 - box.y0)
            elif kind == pdfium.FPDF_PAGEOBJ_FORM and depth < FORM_DEPTH:
                count = pdfium.FPDFFormObj_CountObjects(ctypes.cast(handle, pdfium.FPDF_PAGEOBJECT))
                inner = times(self.own(handle), matrix)
                self.objects(map(calls.form_object, repeat(handle), range(count)), inner, depth + 1)

    def own(self, handle: int) -> Matrix:
        """The object's matrix."""
        m = self.m
        return (m.a, m.b, m.c, m.d, m.e, m.f) if calls.object_matrix(handle, self.m_at) else IDENTITY

    @staticmethod
    def displayed(left: float, bottom: float, right: float, top: float, matrix: Matrix) -> Box:
        a, b, c, d, e, f = matrix
        xs = [x * a + y * c + e for x in (left, right) for y in (bottom, top)]
        ys = [x * b + y * d + f for x in (left, right) for y in (bottom, top)]
        return Box(min(xs), min(ys), max(xs), max(ys))

    def path(self, handle: int, matrix: Matrix) -> None:
        """Adds the ruling lines among a path's segments."""
        fill, stroke = self.modes
        if not calls.draw_mode(handle, *self.modes_at) or not (fill.value or stroke.value):
            return
        count = calls.segment_count(handle)
        if count > SEGMENTS:
            return
        if matrix == IDENTITY and calls.bounds(handle, *self.edges_at):
            left, bottom, right, top = self.edges[:]
            if right - left < SHORT and top - bottom < SHORT:
                return
            if not stroke.value and count <= 5:  # one area: its bounds tell
                if right - left <= THICK or top - bottom <= THICK:
                    self.rules.add(self.displayed(left, bottom, right, top, self.base))
                return
        width = ctypes.c_float()
        calls.stroke_width(handle, ctypes.byref(width))
        whole = times(times(self.own(handle), matrix), self.base)
        for points in self.subpaths(handle, count):
            self.rules.paint(points, whole, bool(fill.value), bool(stroke.value), width.value)

    def subpaths(self, handle: int, count: int) -> Iterator[list[Point]]:
        points: list[Point] = []
        for i in range(count):
            segment = calls.segment(handle, i)
            kind = calls.segment_kind(segment)
            calls.segment_point(segment, *self.edges_at[:2])
            if kind == pdfium.FPDF_SEGMENT_MOVETO:
                if len(points) > 1:
                    yield points
                points = []
            elif kind == pdfium.FPDF_SEGMENT_BEZIERTO:
                points.append(CURVED)
            points.append((self.edges[0], self.edges[1]))
            if calls.segment_closes(segment) and points[-1] != points[0]:
                points.append(points[0])
        if len(points) > 1:
            yield points
