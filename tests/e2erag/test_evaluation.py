"""Soft and hard gates side by side, and the gap between them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from e2erag import RAG, evaluate
from e2erag.__main__ import main
from e2erag.evaluation import METRICS
from e2erag.extract import Extractor
from e2erag.extract.features import LAYOUT_FEATURES
from e2erag.questions import Question
from e2erag.retriever import IndexConfig
from e2erag.testing import tiny_document, tiny_rag

PAGES = [["accident report", "the pilot was 85", "seats 4", "page 1 of 2"], ["engine lycoming", "Weight 9", "page 2"]]
ASKED = [Question("how old was the pilot ?", ("85",), "a.pdf", 1), Question("who made the engine ?", ("lycoming",))]


def gated(mode: str = "hard") -> RAG:
    """Gates that shut lines which begin with a small letter as far as layout tells, and only turn others down."""
    rag = tiny_rag()
    rag.config = type(rag.config)(k=3, precision="float32", mode=mode)
    extractor, here = rag.model.extractor, LAYOUT_FEATURES.index("lower case")
    with torch.no_grad():
        extractor.gates.bias[:2] = 0.3
        extractor.gates.weight[3, extractor.config.hidden + here] = 1.0
        extractor.gates.weight[3, extractor.config.hidden + LAYOUT_FEATURES.index("digits")] = -9.0
    rag.index([tiny_document(PAGES, "a.pdf")])
    return rag


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_both_modes_are_what_each_gives_by_itself(mode: str) -> None:
    """Scores and answers, whichever mode the system is in; the gap is their difference, question by question."""
    rag = gated(mode)
    corpus, index = rag.corpus, rag.index_
    result = evaluate(rag, ASKED)
    assert rag.corpus is corpus
    assert rag.index_ is index
    assert (rag.config.mode, result.mode) == (mode, mode)
    for name, half in (("soft", result.soft), ("hard", result.hard)):
        alone = evaluate(gated(name), ASKED, both=False)
        assert (half.mode, alone.other) == (name, None)
        assert [answer.text for answer in half.answers] == [answer.text for answer in alone.answers]
        np.testing.assert_array_equal(half.scores, alone.scores)
    assert result.soft["tokens read"] > result.hard["tokens read"]
    assert result.gap("tokens read") == pytest.approx(result.soft["tokens read"] - result.hard["tokens read"])
    low, high = result.gap_interval("tokens read")
    assert low <= result.gap("tokens read") <= high


def test_gates_that_hard_mode_shuts_altogether_are_told_and_soft_ones_measured() -> None:
    """The figures of the system's own mode aren't lost."""
    rag = gated("soft")
    with torch.no_grad():
        rag.model.extractor.gates.weight.zero_()
        rag.model.extractor.gates.bias[:2] = -1.0
    rag.refresh()
    with pytest.warns(UserWarning, match="only soft gates are measured, for the others leave nothing: every line's"):
        result = evaluate(rag, ASKED)
    assert (result.mode, result.other) == ("soft", None)
    assert rag.config.mode == "soft"


def test_another_kind_of_search_is_told(tmp_path: Path) -> None:
    """A saved system that faiss searches from memory has its other mode's index searched exactly."""
    rag = gated()
    assert "searched" not in str(evaluate(rag, ASKED))
    rag.save_pretrained(tmp_path / "system")
    index = IndexConfig("milvus", str(tmp_path / "index"))
    result = evaluate(RAG.from_pretrained(tmp_path / "system", index=index), ASKED)
    assert str(result).endswith("searched: soft by exact, hard by milvus, which the gap holds too")
    assert result.to_json()["search"] == {"soft": "exact", "hard": "milvus"}


@pytest.mark.parametrize("fixed", [True, False])
def test_where_nothing_gates_the_corpus_is_encoded_once(fixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new system and the fixed chunker are alike in both modes: one column, no gap, no second index."""
    rag = tiny_rag()
    if fixed:
        rag = RAG(Extractor.fixed(20, 5, text_dim=32), rag.model.retriever, rag.model.generator, rag.config)
    rag.index([tiny_document(PAGES, "a.pdf")])
    monkeypatch.setattr(RAG, "_reindex", None)
    result = evaluate(rag, ASKED)
    assert result.other is None
    assert result.soft is result.hard is result
    assert [result.gap(metric) for metric in METRICS] == [0.0] * len(METRICS)
    assert "soft" not in str(result)


def test_what_both_have_in_common_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are tokenised once, and the system's own index isn't made again."""
    rag, made = gated(), []

    def counted(*given: object, **named: object) -> object:
        made.append(rag.config.mode)
        return encode(*given, **named)

    encode = rag.indexer.encode
    monkeypatch.setattr(rag.indexer, "encode", counted)
    monkeypatch.setattr(RAG, "_lay_out", None)
    assert evaluate(rag, ASKED).other is not None
    assert made == ["soft"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    rag = gated()
    rag.save_pretrained(tmp_path / "system")
    rows = [{"question": q.question, "answers": q.answers, "file": q.file, "page": q.page} for q in ASKED]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps({k: v for k, v in row.items() if v}) for row in rows))
    return tmp_path


def test_the_command_shows_soft_hard_and_gap(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In what is printed and in what --json writes, figures that `evaluate` gives; --both false leaves one column."""
    system, asked, file = (str(saved / name) for name in ("system", "q.jsonl", "figures.json"))
    expected = evaluate(RAG.from_pretrained(system), asked)
    for flags, both in (([], True), (["--both", "false"], False)):
        monkeypatch.setattr(sys, "argv", ["e2erag", "evaluate", system, asked, "--json", file, *flags])
        main()
        head, *rows = capsys.readouterr().out.splitlines()
        told = json.loads(Path(file).read_text())
        assert told["modes_differ"] is both
        assert ("soft" in head and "hard" in head and "soft − hard" in head) is both
        assert [row.split("  ")[0] for row in rows[-len(METRICS) :]] == list(METRICS)[-len(rows) :]
        for metric in METRICS:
            means = {name: told["metrics"][metric][name]["mean"] for name in ("hard", "soft", "gap")}
            assert means["hard"] == pytest.approx(expected.hard[metric])
            if both:
                assert means["soft"] == pytest.approx(expected.soft[metric])
                assert means["gap"] == pytest.approx(expected.gap(metric))


def test_an_index_that_lies_in_the_saved_system_is_evaluated_too(tmp_path: Path) -> None:
    """It can't be made again, and needn't be: nothing is learned. What is saved stays as it was."""
    rag = gated()
    rag.config = type(rag.config)(k=3, precision="float32", index=IndexConfig("Flat", str(tmp_path / "work")))
    rag.index([tiny_document(PAGES, "a.pdf")])
    assert evaluate(rag, ASKED).other is not None
    assert not (tmp_path / "work" / ".aside").exists()
    rag.save_pretrained(tmp_path / "system")
    loaded = RAG.from_pretrained(tmp_path / "system")
    result = evaluate(loaded, ASKED)
    assert result.gap("tokens read") > 0
    RAG.from_pretrained(tmp_path / "system")  # every hash is as it was
