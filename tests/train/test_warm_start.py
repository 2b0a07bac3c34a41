"""Role labels open and shut gates before any answer is seen."""

import json
import re
from pathlib import Path

import pytest
import torch

from e2erag.rag import RAG
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import warm_start
from e2erag.train.warm_start import ROLES, RoleError


@pytest.fixture
def rag() -> RAG:
    system = tiny_rag()
    pages = [[f"page {n} of 4", "the pilot was 85", "seats 4", "engine maker"] for n in range(1, 5)]
    system.index([tiny_document(pages, "a.pdf")])
    return system


def labels(pages: range) -> list[dict[str, object]]:
    rows = [{"file": "a.pdf", "page": n, "line": 1, "role": "page number"} for n in pages]
    return rows + [{"file": "a.pdf", "page": n, "line": 2, "role": "body"} for n in pages]


def test_labelled_pages_teach_the_others(rag: RAG, tmp_path: Path) -> None:
    """Three labelled pages: on the fourth the page number's gates are low, the text's are high."""
    (tmp_path / "roles.jsonl").write_text("\n".join(map(json.dumps, labels(range(1, 4)))))
    before = rag.index_.vectors.clone()
    losses = warm_start(rag, tmp_path / "roles.jsonl", steps=60)
    assert losses[-1] < losses[0] / 2
    out = rag.model.gates(rag.corpus, "soft").extraction
    for gate in (torch.sigmoid(out.retrieve), torch.sigmoid(out.read)):
        assert gate[12] < 0.5 < 0.8 < gate[13]
    assert rag.index_.vectors.shape != before.shape or not torch.equal(rag.index_.vectors, before)


def test_a_box_labels_the_lines_whose_middle_lies_in_it(rag: RAG) -> None:
    """The third line of page 1, by where it stands, is the same label as its number."""
    box = {"file": "a.pdf", "page": 1, "box": [0, 70, 600, 90], "role": "footer"}
    line = {"file": "a.pdf", "page": 1, "line": 3, "role": "footer"}
    twin = tiny_rag()
    twin.index(rag.corpus.documents)
    assert warm_start(rag, [box], steps=3) == warm_start(twin, [line], steps=3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file": "a.pdf", "page": 1, "line": 1}, "a label has file, page, line"),
        ({"file": "a.pdf", "page": 1, "line": 1, "role": "headr"}, "role is one of title, .* got 'headr'"),
        ({"file": "b.pdf", "page": 1, "line": 1, "role": "body"}, "no label meets a line"),
        ({"file": "a.pdf", "page": 1, "box": [1, 2, 3], "role": "body"}, "a label has file, page, line"),
    ],
)
def test_bad_labels_say_what_a_label_is(rag: RAG, row: object, message: str) -> None:
    """The rule and what came."""
    with pytest.raises(RoleError, match=message):
        warm_start(rag, [row])


def test_a_missing_file_is_told(rag: RAG) -> None:
    """With what such a file holds."""
    with pytest.raises(RoleError, match="no such file; a label file is jsonl"):
        warm_start(rag, "nothing.jsonl")


def test_the_document_says_what_a_label_is(rag: RAG) -> None:
    """Its rows are taken, for a file of that name, and each role stands on the side on which lines of it start."""
    text = (Path(__file__).parents[2] / "docs" / "role_labels.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```jsonl\n(.*?)```", text, re.DOTALL)
    rows = [json.loads(line) | {"file": rag.corpus.documents[0].name} for line in block.splitlines()]
    assert warm_start(rag, [row | {"line": 1} for row in rows], steps=1)
    assert [set(row) - {"file", "page", "role"} for row in rows] == [{"line"}, {"box"}]
    sides = re.search(r"start kept where their role is (.*?), and turned\s+down (.*?)\.\s+Lines", text, re.DOTALL)
    assert sides is not None
    kept, down = (" ".join(side.split()) for side in sides.groups())
    for role, keep in ROLES.items():
        assert (role in kept, role in down) == (keep, not keep), role
