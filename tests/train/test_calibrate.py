"""A temperature fitted to questions: the one at which their answers are likeliest, and nothing else changes."""

from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import nn

from e2erag import RAG, QuestionError, RAGConfig
from e2erag.questions import Question, read_questions
from e2erag.retriever import RetrieverConfig
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import marginal

ASKED = [
    Question("registration", ("seats 4",)),
    Question("seats 2 ?", ("engine maker 3",)),
    Question("in 4 engine maker ?", ("N5921D",)),
]
DOCUMENTS = [
    tiny_document([[f"in {i} seats {i % 7}", f"engine maker {i * 3}"] for i in range(6)], "a.pdf"),
    tiny_document([["accident NYC08", "registration N5921D"], ["accident DEN07 engine continental"]], "b.pdf"),
]
SYSTEMS = {
    "plain": {},
    "with BM25, which changes what is found": {"bm25": 0.3},
    "and learns": {"learn_temperature": True, "bm25": 0.3},
}


def system(**settings: object) -> RAG:
    rag = tiny_rag(retriever=RetrieverConfig(**{"temperature": 0.2, **settings}))
    with torch.no_grad():  # some passages are likelier by themselves
        nn.init.normal_(rag.model.extractor.scores.weight, std=0.5)
    rag.index(DOCUMENTS)
    return rag


def now(rag: RAG) -> float:
    with torch.no_grad():
        return float(rag.model.retriever.temperature)


def loss(rag: RAG, k: int) -> float:
    """−log p(y|x) as a step has it, with everything as it is now."""
    with torch.no_grad():
        return marginal(rag.terms(ASKED, k, rag.config.mode)).mean().item()


@pytest.mark.parametrize("settings", SYSTEMS.values(), ids=list(SYSTEMS))
def test_the_likeliest_answers_are_those_of_a_step_at_that_temperature(settings: dict[str, object]) -> None:
    """Each loss is the training loss with the retriever made with that τ; the least is taken, here neither the first
    nor the last."""
    rag = system(**settings)
    done = rag.calibrate(ASKED, 2)
    assert now(rag) == pytest.approx(done.temperature)
    assert min(done.losses) < done.temperature < max(done.losses)
    assert done.losses[done.temperature] == min(done.losses.values()) == pytest.approx(loss(rag, 2), abs=1e-5)
    assert len(done.losses) == 21
    for temperature, found in list(done.losses.items())[::4]:
        assert found == pytest.approx(loss(system(**{**settings, "temperature": temperature}), 2), abs=1e-5)
    assert len({round(found, 4) for found in done.losses.values()}) > 6
    if "bm25" in settings:  # so what is read for one τ isn't what is read for another
        ends = [system(**{**settings, "temperature": end}) for end in (min(done.losses), max(done.losses))]
        cold, warm = (rag.search([q.question for q in ASKED], 2).ids for rag in ends)
        assert not torch.equal(cold, warm)


def test_rows_stay_and_a_saved_system_keeps_its_temperature(tmp_path: Path) -> None:
    """Nothing is encoded; an index made before serves, and is saved without complaint."""
    for settings in SYSTEMS.values():
        rag = system(**settings)
        rows, weights = rag.index_.vectors, [p.clone() for p in rag.model.generator.parameters()]
        temperature = rag.calibrate(ASKED).temperature
        assert rag.index_.vectors is rows
        assert all(map(torch.equal, weights, rag.model.generator.parameters()))
        rag.save_pretrained(tmp_path / "system")
        loaded = RAG.from_pretrained(tmp_path / "system")
        assert now(loaded) == pytest.approx(temperature)
        asked = [q.question for q in ASKED]
        torch.testing.assert_close(loaded.search(asked).prior_logp, rag.search(asked).prior_logp)


def test_fewer_passages_than_are_asked_for() -> None:
    """What isn't there isn't read."""
    rag = system()
    rag.index([tiny_document([["accident NYC08"], ["seats 2"]])])
    done = rag.calibrate(ASKED, 5)
    assert done.losses[done.temperature] == pytest.approx(loss(rag, 5), abs=1e-5)


def test_a_run_begins_at_the_temperature_fitted_to_some_of_its_questions(rag: RAG) -> None:
    """Two of the three, drawn by its seed; its first loss is of a system with that τ."""
    rows, settings = read_questions(ASKED), {"epochs": 1, "batch_size": 3, "k": 2, "progress": False}
    other = system()
    run = system().fit(rows, calibrate=2, **settings)
    assert run.calibration is not None
    assert run.calibration in [system().calibrate(pair, 2) for pair in permutations(ASKED, 2)]
    other.model.retriever.set_temperature(run.calibration.temperature)
    assert run.history[0]["loss"] == pytest.approx(other.fit(rows, **settings).history[0]["loss"], abs=1e-6)
    assert other.fit(rows, **settings).calibration is None


def test_a_best_temperature_at_the_end_of_what_was_tried_is_told() -> None:
    """Here what is found misleads the reader, so the flatter p(z|x), the better."""
    rag = system()
    with pytest.warns(UserWarning, match="τ = 6.4 is the last that was tried"):
        assert rag.calibrate([Question("seats 2 ?", ("N5921D",))]).temperature == pytest.approx(6.4)


def test_what_cannot_be_fitted_is_refused() -> None:
    rag = system()
    with pytest.raises(QuestionError, match="no question in it"):
        rag.calibrate([])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        rag.calibrate(ASKED, 0)
    with pytest.raises(ValueError, match="calibrate must be at least 0, got -1"):
        rag.fit(ASKED, calibrate=-1)
    with pytest.raises(RuntimeError, match="nothing is indexed yet"):
        tiny_rag().calibrate(ASKED)
    together = tiny_rag(config=RAGConfig(k=2, precision="float32", reading="concat"))
    together.index(DOCUMENTS)
    with pytest.raises(ValueError, match='with reading="concat" the reader sees them as τ ranks them'):
        together.calibrate(ASKED)
