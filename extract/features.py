"""What the extractor sees of a line besides its words: where it stands, how it is set, how often it repeats."""

import re
from collections import Counter

import numpy as np
from jaxtyping import Float

from e2erag.extract.document import Document, Page

LAYOUT_FEATURES = (
    "left", "top", "width", "relative size", "bold", "digits", "capitals", "length", "repeats", "page top",
    "page bottom", "cells", "full stop", "colon", "gap above", "gap below", "aligned", "ruled", "heading",
    "confidence", "first page", "page", "line", "hyphen", "lower case",
)  # fmt: skip
"""Names of the columns of `layout_features`, all scaled to about [0, 1] and within [−1, 2]: a line far off its page may
not drown the others of a corpus in the normalisation."""

EDGE = 0.07  # share of the page's height where running headers and footers live
NEAR = 0.8  # ems between a ruling line and the line of text that it belongs to


def layout_features(document: Document) -> Float[np.ndarray, "units features"]:
    """One row per unit of the document, one column per name in `LAYOUT_FEATURES`.

    `repeats` is the log of how many lines of the document read the same once digits are masked: a running
    header stands out by it whatever the page number says. `aligned` is 1 where the line begins where the one before
    it did, `ruled` where a ruling line stands right above or below it.
    """
    units = document.units
    if not units:
        return np.zeros((0, len(LAYOUT_FEATURES)), np.float32)
    masked = [re.sub(r"\d", "0", unit.text) for unit in units]
    count = Counter(masked)
    usual = float(np.median([unit.font_size for unit in units])) or 1.0
    table = np.concatenate([_of_page(page, usual, len(document.pages)) for page in document.pages if page.units])
    table[:, LAYOUT_FEATURES.index("repeats")] = np.log([count[text] for text in masked]) / 4
    return table


def _of_page(page: Page, usual: float, pages: int) -> Float[np.ndarray, "units features"]:
    """The features of a page's lines, with `repeats` still zero; `usual` is the document's font size in points."""
    units = page.units
    n = len(units)
    texts = [unit.text for unit in units]
    box = np.asarray([unit.box for unit in units], np.float64).reshape(n, 4)
    size = np.asarray([unit.font_size for unit in units], np.float64)
    width, height = page.width or 1.0, page.height or 1.0
    length = np.asarray([max(len(text), 1) for text in texts])
    above = np.append(0.0, box[:-1, 3])
    below = np.append(box[1:, 1], height)
    em = np.where(size > 0, size, usual)
    columns = {
        "left": np.clip(box[:, 0] / width, -1.0, 2.0),
        "top": np.clip(box[:, 1] / height, -1.0, 2.0),
        "width": np.minimum((box[:, 2] - box[:, 0]) / width, 2.0),
        "relative size": np.minimum(size / usual, 4.0) / 2,
        "bold": [unit.bold for unit in units],
        "digits": [sum(map(str.isdigit, text)) for text in texts] / length,
        "capitals": [sum(map(str.isupper, text)) for text in texts] / length,
        "length": np.minimum(length / 100, 2.0),
        "page top": box[:, 1] < EDGE * height,
        "page bottom": box[:, 3] > (1 - EDGE) * height,
        "cells": [min(len(unit.cells) or 1, 4) / 4 for unit in units],
        "full stop": [text.endswith((".", ";")) for text in texts],
        "colon": [text.endswith(":") for text in texts],
        "gap above": np.clip((box[:, 1] - above) / (2 * em), -1.0, 2.0),
        "gap below": np.clip((below - box[:, 3]) / (2 * em), -1.0, 2.0),
        "aligned": np.abs(box[:, 0] - np.append(-width, box[:-1, 0])) < 1.0,
        "ruled": _ruled(page, box, em),
        "heading": [(7 - unit.heading) / 6 if unit.heading else 0.0 for unit in units],
        "confidence": [unit.confidence for unit in units],
        "first page": np.full(n, page.number == 1),
        "page": np.full(n, page.number / pages),
        "line": np.minimum([unit.line / 50 for unit in units], 2.0),
        "hyphen": [text.endswith("-") for text in texts],
        "lower case": [text[:1].islower() for text in texts],
    }
    return np.stack([np.asarray(columns.get(name, np.zeros(n)), np.float32) for name in LAYOUT_FEATURES], 1)


def _ruled(page: Page, box: Float[np.ndarray, "units 4"], em: Float[np.ndarray, " units"]) -> np.ndarray:
    """Whether a horizontal ruling line stands within `NEAR` ems over or under each line."""
    rules = np.asarray([rule for rule in page.rules if rule.x1 - rule.x0 > rule.y1 - rule.y0], np.float64)
    if not len(rules):
        return np.zeros(len(box), bool)
    middle = (rules[:, 1] + rules[:, 3]) / 2
    rules = rules[np.argsort(middle)]
    middle = np.sort(middle)
    near = NEAR * em
    over = np.searchsorted(middle, box[:, 1] + near / 4, side="right") - 1  # the last rule above the line's top
    under = np.searchsorted(middle, box[:, 3] - near / 4)
    out = np.zeros(len(box), bool)
    for at in (over, under):
        rule, y = rules[at.clip(0, len(rules) - 1)], middle[at.clip(0, len(rules) - 1)]
        beside = (rule[:, 0] < box[:, 2]) & (rule[:, 2] > box[:, 0]) & (at >= 0) & (at < len(rules))
        out |= beside & (np.minimum(np.abs(y - box[:, 1]), np.abs(y - box[:, 3])) < near)
    return out
