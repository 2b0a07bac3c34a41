"""The index follows the weights: when, and how far."""

from typing import Any

import pytest
import torch

from e2erag import RAG, RAGConfig
from e2erag.questions import Question
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import FitConfig, Run
from e2erag.train.refresh import PROBE, Schedule, most_moved, probe

ROWS = [
    {"question": "how old was the pilot in accident NYC08 ?", "answers": ["85"]},
    {"question": "who made the engine in accident DEN07 ?", "answers": ["continental"]},
]


def run(rag: RAG, **changes: object) -> Run:
    settings = {"epochs": 8, "batch_size": 2, "k": 2, "progress": False, "lr_retriever": 1e-3, **changes}
    return rag.fit(ROWS, **settings)


def move(rag: RAG, by: float = 0.3) -> None:
    """Other weights, so that every vector moves."""
    with torch.no_grad():
        for p in rag.model.retriever.passage.parameters():
            p.add_(by * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * p.std())


@pytest.fixture
def many() -> RAG:
    """Two hundred passages: four runs of `PROBE`, the last of them short."""
    rag = tiny_rag(config=RAGConfig(mode="soft"))
    rag.index([tiny_document([[f"the pilot was {i} engine {j}" for j in range(4)]], f"{i}.pdf") for i in range(52)])
    return rag


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (3, [3, 6, 9, 12, 15]),
        ("3", [3, 6, 9, 12, 15]),
        ("0-6:2,6-:5", [2, 4, 6, 11]),
        ("1-4:1, 10-12:1", [1, 2, 3, 10, 11]),
        ("5-:100", [5]),
    ],
)
def test_a_schedule_says_at_which_steps(text: int | str, steps: list[int]) -> None:
    """Every n-th step of a range from its first on; step 0 never."""
    assert [step for step in range(16) if Schedule(text).due(step)] == steps


@pytest.mark.parametrize("text", [0, "0", "", "a", "0-5", "5-3:1", "0-5:0", "0-:5,5-:3", "0-9:2,5-:3", "-5:3"])
def test_a_wrong_schedule_is_told_what_one_looks_like(text: int | str) -> None:
    """No steps, ranges that overlap or that nothing can follow."""
    with pytest.raises(ValueError, match='ranges of steps with one each, one range after the other, such as "0-200:50'):
        FitConfig(refresh_every=text)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"refresh_share": 0.0}, "refresh_share in"),
        ({"refresh_drift": -1.0}, "refresh_drift is at least 0"),
        ({"refresh_share": 0.5, "refresh_background": True}, "leave one of the two out"),
        ({"refresh_device": "cuda:1"}, "set refresh_background too"),
        ({"rerank": 2, "k": 4}, "rerank must be 0 or at least k = 4, got 2"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], text: str) -> None:
    """Before anything is loaded or trained."""
    with pytest.raises(ValueError, match=text):
        FitConfig(**settings)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(device: str, rag: RAG) -> None:
    """At once, and not by a refresh that a short run never begins."""
    with pytest.raises(ValueError, match=f"refresh_device is a device of this machine, .* got '{device}'"):
        run(rag, epochs=1, refresh_background=True, refresh_device=device)


def test_the_index_is_refreshed_by_the_schedule(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 2, 4 and 7 of eight; its age says so, and the drift is that of the whole index."""
    calls = []
    refresh = rag.refresh
    monkeypatch.setattr(rag, "refresh", lambda: (calls.append(1), refresh())[1])
    history = run(rag, refresh_every="0-5:2,7-:1").history
    assert len(calls) == 3
    assert [row["index_age"] for row in history] == [0, 1, 0, 1, 0, 1, 2, 0]
    drift = [row["drift"] for row in history]
    assert drift[:2] == [0, 0]
    assert len(set(drift)) == 4
    assert all(value > 0 for value in drift[2:])


def test_an_index_that_has_moved_too_little_waits(rag: RAG) -> None:
    """Drift is looked at when a refresh is due, and noted; beneath the threshold nothing is encoded."""
    history = run(rag, refresh_every=2, refresh_drift=0.9).history
    assert [row["index_age"] for row in history] == list(range(8))
    assert 0 < history[-1]["drift"] < 0.9
    assert history[2]["drift"] < history[-1]["drift"]


def test_drift_is_the_cosine_of_the_stored_vector_and_the_present_one(many: RAG) -> None:
    """0 as long as nothing has moved; then what a second index says."""
    every = torch.arange(len(many.corpus.passages))
    assert many.drift(every).abs().max() < 1e-6
    before = many.index_.vectors[:, :-1]
    move(many)
    drift = many.drift(every)
    many.refresh()
    cosine = torch.nn.functional.cosine_similarity(before, many.index_.vectors[:, :-1])
    assert drift.min() > 1e-4
    assert torch.allclose(drift, 1 - cosine, atol=1e-5)


def test_the_runs_that_moved_most_are_encoded_anew_and_no_other_row_changes(many: RAG) -> None:
    """Half of four runs; and what is then only partly of the present weights isn't saved."""
    n = len(many.corpus.passages)
    assert 3 * PROBE < n < 4 * PROBE
    move(many)
    probed = probe(many)
    assert probed.shape == (4,)
    chosen = most_moved(many, probed, 0.5)
    best = set(probed.topk(2).indices.tolist())
    assert {i // PROBE for i in chosen.tolist()} == best
    before = many.index_.vectors.clone()
    many.refresh(chosen)
    changed = (many.index_.vectors != before).any(1)
    assert changed.nonzero().flatten().tolist() == chosen.tolist()
    assert many.drift(chosen).abs().max() < 1e-5
    with pytest.raises(RuntimeError, match=r"and encoder, extractor changed since: call rag\.refresh\(\)"):
        many.save_pretrained("never")
    many.refresh()
    assert many.drift(torch.arange(n)).abs().max() < 1e-5


def test_a_run_refreshes_a_share(many: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of four runs at a time; at the end the whole index is of the trained weights."""
    sizes = []
    refresh = many.refresh
    monkeypatch.setattr(many, "refresh", lambda passages: (sizes.append(len(passages)), refresh(passages))[1])
    run(many, epochs=4, refresh_every=1, refresh_share=0.25)
    assert len(sizes) == 3
    assert max(sizes) <= PROBE
    monkeypatch.undo()
    assert many.drift(torch.arange(len(many.corpus.passages))).abs().max() < 1e-5


def test_candidates_found_by_stale_vectors_are_ranked_by_fresh_ones(many: RAG) -> None:
    """With all of the corpus to choose from, the K read are the K best of a fresh index, however stale this one is."""
    asked = [Question(row["question"], tuple(row["answers"])) for row in ROWS]
    n = len(many.corpus.passages)
    move(many, 1.0)
    stale = many.terms(asked, 2, "soft").ids
    ranked = many.terms(asked, 2, "soft", rerank=n).ids
    many.refresh()
    fresh = many.terms(asked, 2, "soft").ids
    assert torch.equal(ranked, fresh)
    assert not torch.equal(stale, fresh)
