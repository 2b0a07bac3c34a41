"""BM25: the formula, a weight that learns in the softmax, and a gold passage that only it can reach."""

import math
from pathlib import Path

import pytest
import torch
from helpers import in_double
from torch import Tensor

from e2erag import RAG, RAGConfig
from e2erag.extract import ExtractorConfig
from e2erag.questions import Question
from e2erag.retriever import BM25, RetrieverConfig
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import FitConfig, marginal
from e2erag.train.module import TrainModule

TEXTS = ["pilot age 85", "engine maker Lycoming engine", "seats 4", "pilot medical exam, pilot seats 2"]


def test_scores_are_the_formula() -> None:
    """Σ idf·tf/(tf + 1.5(.25 + .75·length/mean)), idf = ln(1 + (N − n + .5)/(n + .5)), by hand."""
    mean = (3 + 4 + 2 + 6) / 4
    idf = {"engine": math.log(1 + 3.5 / 1.5), "pilot": math.log(1 + 2.5 / 2.5), "4": math.log(1 + 3.5 / 1.5)}

    def part(word: str, tf: int, length: int) -> float:
        return idf[word] * tf / (tf + 1.5 * (0.25 + 0.75 * length / mean))

    expected = [
        [part("pilot", 1, 3), part("engine", 2, 4), 0.0, part("pilot", 2, 6)],
        [0.0, 0.0, part("4", 1, 2), 0.0],
        [0.0] * 4,
    ]
    scores = BM25(TEXTS).scores(["the Engine of the pilot?", "4", "unknown"])
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("texts", [["--", "?!"], ["the of", "and"], [""]])
def test_a_corpus_without_a_word_finds_nothing(texts: list[str]) -> None:
    """Passages of marks and stop words alone score zero, and the others of a system go on to be found."""
    bm25 = BM25(texts)
    assert bm25.scores(["pilot", "the", "?"]).tolist() == [[0.0] * len(texts)] * 3
    assert (bm25.search(["pilot", "--"], 3).ids == -1).all()


def test_a_search_is_sorted_with_ties_by_row_and_finds_nothing_without_a_common_word() -> None:
    """Two equal passages in the order of their rows; K beyond the corpus; −1 for what has no word of the question."""
    hits = BM25(["seats 4", "pilot", "seats 4"]).search(["seats", "x"], 5)
    assert hits.ids.tolist() == [[0, 2, -1], [-1, -1, -1]]
    assert hits.scores[0, 0] == hits.scores[0, 1] > 0
    assert (hits.scores[1] == -torch.inf).all()
    with pytest.raises(ValueError, match="BM25 needs at least one passage, got none"):
        BM25([])


LINES = [
    "accident number NYC08", "the pilot was 85", "engine maker lycoming", "seats 4", "weight 2000", "damage none",
    "medical exam 1/2/2007", "registration N5921D", "landing gear tailwheel", "date 3/4/2008",
]  # fmt: skip
ASKED = [Question("how old was the pilot ?", ("85",)), Question("who made the engine ?", ("lycoming",))]


def ten_passages(beta: float | None, k: int = 10) -> RAG:
    """Ten passages of a line each."""
    system = tiny_rag(
        extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(1,), identity_lines=0, kinds=()),
        retriever=RetrieverConfig(temperature=0.2, bm25=beta),
        config=RAGConfig(k=k, mode="soft", precision="float32"),
    )
    system.index([tiny_document([LINES])])
    assert len(system.corpus.passages) == 10
    return system


def test_the_hybrid_is_the_softmax_of_both_scores_over_the_corpus() -> None:
    """log p(z|x) of a search, and of a training step, against dense + β·BM25 written out."""
    system = ten_passages(0.7)
    questions = [q.question for q in ASKED]
    dense = ten_passages(None)
    with torch.no_grad():
        scores = dense.model.retriever.encode_questions(questions) @ dense.index_.vectors.T
        expected = (scores + 0.7 * BM25(LINES).scores(questions)).log_softmax(1)
        found, terms = system.search(questions, 4), system.terms(ASKED, 4, "soft")
    for each in (found, terms):
        torch.testing.assert_close(each.prior_logp, expected.gather(1, each.ids), atol=1e-5, rtol=0)
        assert each.ids.tolist() == expected.argsort(1, descending=True)[:, :4].tolist()
    assert not torch.equal(found.ids, dense.search(questions, 4).ids)
    assert dense.corpus._bm25 is None  # who doesn't want it doesn't pay for it


def loss(system: RAG) -> Tensor:
    terms = system.terms(ASKED, 3, "soft")
    return marginal(terms).mean()


def test_the_weights_gradient_equals_finite_differences() -> None:
    """d(−log p(y|x))/dβ through Z over the whole corpus, three of ten passages read, in float64."""
    system = ten_passages(0.3)
    in_double(system.model)
    system.refresh()
    beta = system.model.retriever.beta
    (slope,) = torch.autograd.grad(loss(system), [beta])
    values, step = [], 1e-5
    for sign in (1, -1):
        beta.data += sign * step
        with torch.no_grad():
            values.append(loss(system).item())
        beta.data -= sign * step
    assert abs(slope.item()) > 1e-4
    assert slope.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_the_weight_learns_at_its_own_rate_and_is_saved(tmp_path: Path) -> None:
    """In a group of its own, without decay; moved by a run, and the same after loading."""
    system = ten_passages(0.3)
    groups = TrainModule(system, FitConfig(lr_bm25=0.5), 1).configure_optimizers()["optimizer"].param_groups
    (group,) = [g for g in groups if g["name"] == "bm25"]
    assert (group["initial_lr"], group["weight_decay"], group["params"]) == (0.5, 0.0, [system.model.retriever.beta])
    rows = [{"question": q.question, "answers": list(q.answers)} for q in ASKED]
    system.fit(rows, epochs=1, batch_size=2, k=2, progress=False, freeze=("extractor", "generator"))
    learned = system.model.retriever.beta.item()
    assert learned != pytest.approx(0.3, abs=1e-4)
    system.save_pretrained(tmp_path / "system")
    again = RAG.from_pretrained(tmp_path / "system", device="cpu")
    assert again.model.retriever.beta.item() == learned
    questions = [q.question for q in ASKED]
    torch.testing.assert_close(again.search(questions).prior_logp, system.search(questions).prior_logp)


def rank(system: RAG, question: str, passage: int) -> int:
    return int((system.search([question], 10).ids[0] == passage).nonzero())


def taught(gold: int, asked: Question) -> RAG:
    """A reader that gives the answer to the gold passage alone, and a retriever that ranks this passage last."""
    system = ten_passages(None, k=1)
    reader = torch.optim.Adam(system.model.generator.parameters(), 3e-3)
    finder = torch.optim.SGD(system.model.retriever.parameters(), 0.02)
    while True:
        terms = system.terms([asked], 10, "soft")
        is_gold = terms.ids == gold
        others = torch.cat([terms.answer_logp[~is_gold], terms.closed_book_logp])
        ahead = terms.answer_logp[is_gold] - others.max()
        if ahead > 5 and rank(system, asked.question, gold) == 9:
            return system
        reader.zero_grad()
        finder.zero_grad()
        ((-ahead).clamp_min(-6).sum() + terms.prior_logp[is_gold].sum()).backward()
        reader.step()
        if rank(system, asked.question, gold) < 9:
            finder.step()
            system.refresh()


@pytest.mark.parametrize("mined", [0, 1])
def test_mining_lets_a_gold_passage_in_that_the_retriever_ranks_last(mined: int) -> None:
    """The gold passage alone explains the answer, and is ranked last. With K = 1 it is never read, and not learned;
    mined, it is read, and comes first."""
    gold, asked = 1, ASKED[0]
    system = taught(gold, asked)
    terms = system.terms([asked], 1, "soft", mined=mined)
    assert (gold in terms.ids[0].tolist()) == bool(mined)
    system.fit(
        [{"question": asked.question, "answers": list(asked.answers)}] * 16, epochs=1, batch_size=1, k=1, mined=mined,
        lr_retriever=2e-3, refresh_every=1, calibrate=0, progress=False, freeze=("extractor", "generator"),
    )  # fmt: skip
    assert (rank(system, asked.question, gold) == 0) == bool(mined)


def test_mined_passages_repeat_neither_each_other_nor_those_found() -> None:
    """Nested candidates: beside the K found only passages of other lines, as many as there are."""
    system = tiny_rag(config=RAGConfig(k=2, mode="soft", precision="float32"))
    system.index([tiny_document([LINES])])
    spans = system.corpus.spans
    hits = system.terms(ASKED, 2, "soft").ids
    ids = system.model.mine(system.corpus, [q.question for q in ASKED], ["85", "lycoming"], hits, 3)
    assert ids.shape == (2, 5)
    assert torch.equal(ids[:, :2], hits)
    assert (ids[:, 2] >= 0).all()
    for row in ids.tolist():
        there = [i for i in row if i >= 0]
        pairs = [(spans.spans[a], spans.spans[b]) for n, a in enumerate(there) for b in there[:n]]
        assert not any(bool(spans.repeats(a, b)) for a, b in pairs)
