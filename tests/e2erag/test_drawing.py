"""Pages drawn stand for a corpus that is too large to be judged whole: same loss, same gradient in the mean."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers import in_double
from torch import nn

from e2erag.config import RAGConfig
from e2erag.corpus import Corpus
from e2erag.drawing import by_pages, draw, pages_of
from e2erag.extract import ExtractorConfig
from e2erag.questions import Question
from e2erag.rag import RAG
from e2erag.retriever import Spans
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import marginal

ASKED = [
    Question("how old was the pilot in accident NYC08 ?", ("85",)),
    Question("who made the engine in accident DEN07 ?", ("continental",)),
]
PAGES = [
    ["accident number NYC08", "the pilot was 85", "engine maker lycoming"],
    ["medical exam 1/2/2007", "registration N5921D", "landing gear tailwheel"],
    ["accident number DEN07", "engine continental", "damage none"],
    ["seats 4", "weight 2000", "date 3/4/2008"],
]


@pytest.fixture
def system() -> RAG:
    """Four pages in float64, whose extractor says something and normalises by what it has learned before."""
    rag = tiny_rag(
        extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(1, 2), identity_lines=1, kinds=()),
        config=RAGConfig(k=3, mode="soft", precision="float32"),
    )
    for head in (rag.model.extractor.gates, rag.model.extractor.scores):
        nn.init.normal_(head.weight, std=0.2)
    in_double(rag.model)
    rag.index([tiny_document(PAGES[:2], "a.pdf"), tiny_document(PAGES[2:], "b.pdf")])
    return rag


def every_draw(count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, ...]]:
    """Sets torch.randperm, one after the other, to every choice of so many pages of four."""
    for chosen in combinations(range(4), count):
        rest = [page for page in range(4) if page not in chosen]
        order = torch.tensor([*chosen, *rest])
        monkeypatch.setattr(torch, "randperm", lambda n, generator=None, order=order: order)
        yield chosen
    monkeypatch.undo()


def learned(rag: RAG) -> dict[str, torch.Tensor]:
    """The extractor's gradient, which is forgotten then."""
    named = {name: p.grad for name, p in rag.model.extractor.named_parameters() if p.grad is not None}
    rag.model.zero_grad(set_to_none=True)
    return named


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_passage_is_drawn_as_often_as_its_chance_says(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted over every draw of four pages, for passages that lie on one to three of them."""
    corpus, page = Corpus.__new__(Corpus), torch.tensor([0, 0, 1, 2, 2, 2, 3])
    spans = torch.tensor([[0, 0, 2, 0], [0, 1, 3, 0], [0, 1, 4, 0], [0, 5, 7, 0], [0, 6, 7, 0]])
    corpus.page, corpus.spans, corpus.first_line = page, Spans(spans, 1.0), np.asarray([0, 7])
    times, draws = torch.zeros(5), 0
    said: dict[int, float] = {}
    for chosen in every_draw(count, monkeypatch):
        drawn = draw(corpus, 2 * count)
        assert set(page[drawn.lines].tolist()) == set(chosen)
        times[drawn.passages] += 1
        said |= dict(zip(drawn.passages.tolist(), drawn.chance.tolist(), strict=True))
        draws += 1
    for passage, chance in said.items():
        assert times[passage] / draws == pytest.approx(chance)
    assert set(said) == {i for i in range(5) if times[i]}


def test_all_pages_drawn_are_the_whole_corpus(system: RAG) -> None:
    """The same prior, tokens and extraction, without weights."""
    model, corpus = system.model, system.corpus
    whole = model.gates(corpus, "soft")
    said = by_pages(model, corpus, system.index_, len(corpus), "soft", None)
    torch.testing.assert_close(said.tokens_kept, corpus.tokens_kept(whole))
    extraction = said.of(torch.tensor([0]))[0].extraction
    torch.testing.assert_close(torch.stack(extraction), torch.stack(whole.extraction))
    torch.testing.assert_close(said.prior, model.retriever.config.prior_weight * model.log_prior(corpus, whole))


def test_the_slope_of_z_is_right_in_the_mean_over_draws(system: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """log Z's gradient in the extractor, averaged over every draw of two pages of four, is that of the whole corpus."""
    model, corpus, index = system.model, system.corpus, system.index_
    with torch.no_grad():
        queries = model.retriever.encode_questions([q.question for q in ASKED])
    prior = model.retriever.config.prior_weight * model.log_prior(corpus, model.gates(corpus, "soft"))
    index.log_z(queries, index.search(queries, 3, prior), None, prior).sum().backward()
    whole, mean, draws = learned(system), {}, 0
    for _ in every_draw(2, monkeypatch):
        prior = by_pages(model, corpus, index, len(corpus) // 2, "soft", None).prior
        index.log_z(queries, index.search(queries, 3, prior), None, prior).sum().backward()
        for name, slope in learned(system).items():
            mean[name] = mean.get(name, 0) + slope
        draws += 1
    assert draws == 6
    assert whole["scores.weight"].abs().max() > 1e-3
    for name, slope in whole.items():
        torch.testing.assert_close(mean[name] / draws, slope, msg=name)


def test_over_a_fresh_index_the_loss_and_the_gates_gradient_are_the_whole_corpus(system: RAG) -> None:
    """What is read stands on the pages found, whatever was drawn; log π that is stored is log π that would be found."""
    results = []
    for judged in (0, 4):
        terms = system.terms(ASKED, 3, "soft", torch.Generator().manual_seed(1), judged=judged)
        marginal(terms).mean().backward()
        results.append((terms, learned(system)))
    (whole, slopes), (drawn, others) = results
    torch.testing.assert_close(whole.prior_logp, drawn.prior_logp)
    torch.testing.assert_close(whole.answer_logp, drawn.answer_logp)
    assert len(drawn.gates.extraction.read) < len(system.corpus) == len(whole.gates.extraction.read)
    torch.testing.assert_close(slopes["gates.weight"], others["gates.weight"])
    assert others["scores.weight"].abs().max() > 0


@pytest.mark.parametrize(("rerank", "negatives"), [(0, 0), (4, 0), (0, 3)])
def test_training_by_pages_drawn_reaches_every_stage(rerank: int, negatives: int) -> None:
    """Some steps over pages drawn, with fresh ranking and without, and with passages drawn from the pages that aren't;
    the loss falls as it does over all of them."""
    system = tiny_rag(config=RAGConfig(k=2, mode="soft"))
    system.index([tiny_document(PAGES[:2], "a.pdf"), tiny_document(PAGES[2:], "b.pdf")])
    before = {name: value.clone() for name, value in system.model.state_dict().items()}
    rows = [{"question": q.question, "answers": list(q.answers)} for q in ASKED]
    how = {"k": 2, "judged": 6, "rerank": rerank, "negatives": negatives, "lr_generator": 3e-3}
    run = system.fit(rows, epochs=12, batch_size=2, progress=False, **how)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    moved = {name.split(".")[0] for name, value in system.model.state_dict().items() if not value.equal(before[name])}
    assert moved == {"extractor", "retriever", "generator"}


def test_pages_found_hold_what_a_passage_carries(system: RAG) -> None:
    """The identity line of a passage on a document's second page stands on its first."""
    corpus = system.corpus
    passage = next(i for i, p in enumerate(corpus.passages) if p.carried and corpus.page[corpus.lines(i)[0][-1]] == 3)
    assert set(corpus.page[pages_of(corpus, torch.tensor([passage]))].tolist()) == {2, 3}


def test_what_all_passages_have_gained_since_the_index_was_made_cancels(system: RAG) -> None:
    """A constant in every line's span score, without a refresh: p(z|x) stays, as it does over the whole corpus."""
    before = system.terms(ASKED, 3, "soft", judged=4).prior_logp
    with torch.no_grad():
        system.model.extractor.scores.bias[1] += 3.0
    for judged in (0, 4, 7):
        terms = system.terms(ASKED, 3, "soft", torch.Generator().manual_seed(judged), judged=judged)
        torch.testing.assert_close(terms.prior_logp, before)


def test_ranks_with_other_questions_draw_the_same_pages(system: RAG) -> None:
    """Random numbers are drawn alike whatever is found: the state after a step doesn't depend on its questions."""
    states = []
    for asked in (ASKED, ASKED[:1], ASKED[1:]):
        noise = torch.Generator().manual_seed(3)
        system.terms(asked, 2, "sample", noise, judged=4)
        states.append(noise.get_state())
    assert all(state.equal(states[0]) for state in states)


def test_a_refresh_of_some_passages_is_one_of_every_log_prior(system: RAG) -> None:
    """It costs no encoding: fresh ones beside stale ones would be another distribution."""
    with torch.no_grad():
        system.model.extractor.scores.bias[1] += 3.0
    system.refresh(torch.tensor([0]))
    stored = system.index_.vectors[:, -1].double()
    fresh = system.model.log_prior(system.corpus, system.model.gates(system.corpus, "soft"))
    torch.testing.assert_close(stored, system.model.retriever.config.prior_weight * fresh, atol=1e-5, rtol=0)
