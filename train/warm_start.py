"""A warm start of the extractor from role labels, where somebody has them.

A label file is jsonl, a row per line of a page that is labelled:

    {"file": "report.pdf", "page": 1, "line": 3, "role": "header"}

`file` is a document's name or path as indexed, `page` and `line` count from 1 as in `Unit` (and in citations).
Instead of `line` a row may hold `box`, [x0, y0, x1, y1] in points from the top left: the lines whose middle lies in it.
`role` is a name in `ROLES`. Lines without a label are left to the answers.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from e2erag.corpus import Corpus
from e2erag.rag import RAG

ROLES = {
    "title": True, "heading": True, "body": True, "text": True, "list": True, "table": True, "caption": True,
    "footnote": True, "equation": True, "header": False, "footer": False, "page number": False, "sidebar": False,
    "notice": False, "advert": False, "navigation": False,
}  # fmt: skip
"""Whether lines of a role start kept. Roles are a start, not a truth: answers go on from there."""


class RoleError(ValueError):
    """A label file, or a row of one, that isn't one."""


def warm_start(
    rag: RAG,
    labels: str | Path | Iterable[Mapping[str, Any]],
    steps: int = 100,
    rate: float = 1e-2,
    kept: float = 0.95,
    dropped: float = 0.25,
) -> list[float]:
    """Move the extractor's keep gates towards what role labels say, and index anew with them.

    Minimises the cross-entropy between both keep gates of a labelled line and its target over `steps` full passes
    (AdamW). The targets stay away from 0, where a gate has no slope left for the answers to open it again.

    Args:
        rag: an indexed system; its other stages are not touched.
        labels: a label file, or its rows (see this module).
        kept, dropped: the gates to start from, of lines whose role is kept or dropped.

    Returns:
        the loss at every step.

    Raises:
        RoleError: a row without its columns, an unknown role, or no label that meets a line.
        RuntimeError: nothing is indexed, or a fixed chunker, which learns nothing.
    """
    if rag.corpus is None:
        raise RuntimeError("nothing is indexed yet: call index(files) first")
    extractor, corpus = rag.model.extractor, rag.corpus
    if extractor.config.chunk is not None:
        raise RuntimeError("a fixed chunker has no gates to start: build the system with another ExtractorConfig")
    lines, targets = _targets(corpus, _rows(labels), kept, dropped)
    optimizer = torch.optim.AdamW(extractor.parameters(), lr=rate)
    losses = []
    with extractor.learning():
        for _ in range(steps):
            extraction = rag.model.gates(corpus, "soft").extraction
            logits = torch.stack([extraction.retrieve, extraction.read])[:, lines]
            loss = F.binary_cross_entropy_with_logits(logits, targets.to(logits).expand_as(logits))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    rag._reindex(corpus)
    return losses


def _rows(labels: str | Path | Iterable[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows and where they stand."""
    if not isinstance(labels, (str, Path)):
        return [(f"row {n}", row) for n, row in enumerate(labels, 1)]
    path = Path(labels)
    if not path.is_file():
        raise RoleError(f"{path}: no such file; a label file is jsonl with file, page, line and role")
    rows = []
    for n, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if text.strip():
            try:
                rows.append((f"{path}, line {n}", json.loads(text)))
            except json.JSONDecodeError as error:
                raise RoleError(f"{path}, line {n}: is not JSON ({error}); write one object per line") from None
    return rows


def _is_label(row: Any) -> bool:
    """Whether a row has every column, each of its kind."""
    if not isinstance(row, Mapping) or not isinstance(row.get("file"), str) or not isinstance(row.get("role"), str):
        return False
    box = row.get("box")
    boxed = isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    return isinstance(row.get("page"), int) and (isinstance(row.get("line"), int) or boxed)


def _targets(
    corpus: Corpus, rows: list[tuple[str, Mapping[str, Any]]], kept: float, dropped: float
) -> tuple[list[int], Float[Tensor, " labelled"]]:
    """The corpus' line numbers that are labelled, and the gate each should start from."""
    pages: dict[tuple[str, int], tuple[int, Any]] = {}
    for first, document in zip(corpus.first_line.tolist(), corpus.documents, strict=False):
        for page in document.pages:
            pages[document.file, page.number] = pages[document.name, page.number] = (first, page)
            first += len(page.units)
    found: dict[int, bool] = {}
    for where, row in rows:
        if not _is_label(row):
            raise RoleError(f"{where}: a label has file, page, line (or box) and role, got {row!r:.100}")
        if row["role"] not in ROLES:
            raise RoleError(f"{where}: role is one of {', '.join(ROLES)}, got {row['role']!r}")
        if (row["file"], row["page"]) not in pages:
            continue  # a file of labels may speak of more documents than are indexed
        first, page = pages[row["file"], row["page"]]
        for i, unit in enumerate(page.units):
            x, y = (unit.box.x0 + unit.box.x1) / 2, (unit.box.y0 + unit.box.y1) / 2
            inside = "box" in row and row["box"][0] <= x <= row["box"][2] and row["box"][1] <= y <= row["box"][3]
            if inside or unit.line == row.get("line"):
                found[first + i] = ROLES[row["role"]]
    if not found:
        names = ", ".join(document.name for document in corpus.documents[:3])
        raise RoleError(f"no label meets a line of what is indexed ({names}…): do file, page and line agree with it?")
    return list(found), torch.tensor([kept if keep else dropped for keep in found.values()])
