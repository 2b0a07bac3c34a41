"""What the extractor sees of a line besides its words: where it stands, how it is set, how often it repeats."""

import re
from collections import Counter

import numpy as np
from jaxtyping import Float

from e2erag.extract.document import Document

LAYOUT_FEATURES = (
    "left", "top", "width", "relative size", "bold", "digits", "capitals", "length", "repeats", "page top",
    "page bottom", "cells", "full stop", "colon", "gap above", "first page", "page", "line",
)  # fmt: skip
"""Names of the columns of `layout_features`, all scaled to about [0, 1]."""

EDGE = 0.07  # share of the page's height where running headers and footers live


def layout_features(document: Document) -> Float[np.ndarray, "units features"]:
    """One row per unit of the document, one column per name in `LAYOUT_FEATURES`.

    `repeats` is the log of how many lines of the document read the same once digits are masked: a running
    header stands out by it whatever the page number says.
    """
    units = document.units
    if not units:
        return np.zeros((0, len(LAYOUT_FEATURES)), np.float32)
    masked = [re.sub(r"\d", "0", unit.text) for unit in units]
    count = Counter(masked)
    size = float(np.median([unit.font_size for unit in units])) or 1.0
    pages = len(document.pages)
    rows = []
    for page in document.pages:
        width, height = page.width or 1.0, page.height or 1.0
        bottom = 0.0
        for unit in page.units:
            text, box = unit.text, unit.box
            n = max(len(text), 1)
            rows.append((
                box.x0 / width,
                box.y0 / height,
                (box.x1 - box.x0) / width,
                min(unit.font_size / size, 4.0) / 2,
                unit.bold,
                sum(map(str.isdigit, text)) / n,
                sum(map(str.isupper, text)) / n,
                min(n / 100, 2.0),
                0.0,  # repeats, filled in below
                box.y0 < EDGE * height,
                box.y1 > (1 - EDGE) * height,
                min(len(unit.cells) or 1, 4) / 4,
                text.endswith((".", ";")),
                text.endswith(":"),
                float(np.clip((box.y0 - bottom) / (2 * (unit.font_size or size)), -1.0, 2.0)),
                page.number == 1,
                page.number / pages,
                min(unit.line / 50, 2.0),
            ))  # fmt: skip
            bottom = box.y1
    table = np.asarray(rows, np.float32)
    table[:, LAYOUT_FEATURES.index("repeats")] = np.log([count[text] for text in masked]) / 4
    return table
