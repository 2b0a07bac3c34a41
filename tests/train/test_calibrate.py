"""A temperature fitted to questions: the one at which their answers are likeliest, and nothing else changes."""

import math
from dataclasses import replace
from importlib import import_module
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import nn

from e2erag import RAG, QuestionError, RAGConfig
from e2erag.questions import Question, read_questions
from e2erag.retriever import IndexConfig, RetrieverConfig
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
    "with BM25, which keeps its share": {"bm25": 0.02},
    "and learns": {"learn_temperature": True, "bm25": 0.02},
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


def shut_some(rag: RAG) -> None:
    """Gates by random weights, so that soft and hard ones differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        nn.init.normal_(rag.model.extractor.gates.weight, std=2.0)
    rag.refresh()


def loss(rag: RAG, k: int) -> float:
    """−log p(y|x) as a step has it, with everything as it is now."""
    with torch.no_grad():
        return marginal(rag.terms(ASKED, k, rag.config.mode)).mean().item()


@pytest.mark.parametrize("settings", SYSTEMS.values(), ids=list(SYSTEMS))
def test_the_likeliest_answers_are_those_of_a_step_at_that_temperature(settings: dict[str, object]) -> None:
    """Each loss is the training loss with the retriever made with that τ, and with a β that many times as large; the
    least is taken, here neither the first nor the last."""

    def made(temperature: float) -> RAG:
        mixed = {"bm25": settings["bm25"] * 0.2 / temperature} if "bm25" in settings else {}
        return system(**{**settings, "temperature": temperature, **mixed})

    rag = system(**settings)
    done = rag.calibrate(ASKED, 2)
    assert now(rag) == pytest.approx(done.temperature)
    assert min(done.losses) < done.temperature < max(done.losses)
    assert done.losses[done.temperature] == min(done.losses.values()) == pytest.approx(loss(rag, 2), abs=1e-5)
    assert len(done.losses) == 21
    for temperature, found in list(done.losses.items())[::4]:
        assert found == pytest.approx(loss(made(temperature), 2), abs=1e-5)
    assert len({round(found, 4) for found in done.losses.values()}) > 6
    ends = [made(end) for end in (min(done.losses), max(done.losses))]
    cold, warm = (rag.search([q.question for q in ASKED], 2).ids for rag in ends)
    assert not torch.equal(cold, warm)  # for there is a prior


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


def test_a_run_begins_at_the_temperature_fitted_to_some_of_its_questions() -> None:
    """Two of the three, drawn by its seed; its first loss is of a system with that τ. With soft gates, as it trains."""
    rows, settings = read_questions(ASKED), {"epochs": 1, "batch_size": 3, "k": 2, "progress": False}
    other, trained = system(), system()
    shut_some(trained)
    shut_some(other)
    run = trained.fit(rows, calibrate=2, **settings)
    assert run.calibration is not None
    with other.in_mode("soft"):
        start = other.model.retriever.config
        fits = []
        for pair in permutations(ASKED, 2):
            fits.append(other.calibrate(pair, 2))
            other.model.retriever.config = start
    assert run.calibration in fits
    assert run.calibration.losses != other.calibrate(rows, 2).losses
    other.model.retriever.set_temperature(run.calibration.temperature)
    assert run.history[0]["loss"] == pytest.approx(other.fit(rows, **settings).history[0]["loss"], abs=1e-6)
    assert other.fit(rows, **settings).calibration is None


def test_a_run_that_is_refused_leaves_the_temperature() -> None:
    """A budget without room for a row is told before anything is fitted."""
    rag = system(temperature=2.0)
    with pytest.raises(ValueError, match="memory_budget holds at least"):
        rag.fit(ASKED * 6, epochs=1, k=2, memory_budget=1000, progress=False)
    assert now(rag) == pytest.approx(2.0)


def test_by_itself_a_run_fits_the_temperature_where_questions_say_enough() -> None:
    """To 64 of them, or as many as there are from 16 on, where the retriever learns and passages are read alone."""
    many, settings = ASKED * 6, {"epochs": 1, "batch_size": 9, "k": 2, "progress": False}
    rag, other = system(temperature=2.0), system(temperature=2.0)
    run = rag.fit(many, **settings)
    assert run.calibration is not None
    assert run.calibration == other.fit(many, calibrate=64, **settings).calibration
    assert now(rag) == pytest.approx(now(other))
    assert now(rag) < 1.0
    assert system().fit(many[:15], **settings).calibration is None
    assert system().fit(many, calibrate=0, **settings).calibration is None
    assert system().fit(many, freeze=("retriever",), **settings).calibration is None
    together = tiny_rag(config=RAGConfig(k=2, precision="float32", reading="concat"))
    together.index(DOCUMENTS)
    assert together.fit(many, objective="reader", **settings).calibration is None


@pytest.mark.filterwarnings("ignore:τ = 6.4 is the last that was tried")
def test_by_itself_a_run_takes_no_flatter_temperature() -> None:
    """What makes one likelier is that the retriever is wrong, and to it a flat p(z|x) would leave little to learn."""
    many = [Question("seats 2 ?", ("N5921D",))] * 16
    settings = {"epochs": 1, "batch_size": 16, "k": 2, "progress": False}
    assert system().fit(many, calibrate=64, **settings).calibration.temperature == pytest.approx(6.4)
    run = system().fit(many, **settings)
    assert min(run.calibration.losses, key=run.calibration.losses.get) == pytest.approx(6.4)
    assert run.calibration.temperature == pytest.approx(0.2)


def test_a_best_temperature_at_the_end_of_what_was_tried_is_told() -> None:
    """Here what is found misleads the reader, so the flatter p(z|x), the better."""
    rag = system()
    with pytest.warns(UserWarning, match="τ = 6.4 is the last that was tried"):
        assert rag.calibrate([Question("seats 2 ?", ("N5921D",))]).temperature == pytest.approx(6.4)


def test_portions_and_an_estimated_z_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many questions at a time as one likes; and the random numbers of the caller stay what they were."""
    whole = system(bm25=0.3).calibrate(ASKED, 2)
    monkeypatch.setattr(import_module("e2erag.train.calibrate"), "AT_ONCE", 2)  # of that name there is a function too
    before = torch.get_rng_state()
    parts = system(bm25=0.3)
    parts.config = replace(parts.config, index=IndexConfig("Flat", str(tmp_path)))
    parts.refresh()
    got = parts.calibrate(ASKED, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert got.losses == pytest.approx(whole.losses, abs=1e-5)


def test_where_it_makes_no_difference_the_temperature_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """One passage has p(z|x) = 1 at any τ; and what is no number chooses none."""
    rag = system()
    rag.index([tiny_document([["seats 2"]])])
    assert rag.calibrate(ASKED, 1).temperature == 0.2
    with torch.no_grad():
        rag.model.generator.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match=r"τ can't be fitted, .* does the reader diverge"):
        rag.calibrate(ASKED, 1)
    assert now(rag) == pytest.approx(0.2)


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
    for door in (lambda: together.calibrate(ASKED), lambda: together.fit(ASKED, calibrate=2)):
        with pytest.raises(ValueError, match='with reading="concat" the reader sees them as τ ranks them'):
            door()
    mixed = system(bm25=0.3)
    with pytest.raises(ValueError, match="must be above 0, got inf"):
        mixed.model.retriever.set_temperature(math.inf)
    assert (now(mixed), mixed.model.retriever.beta.item()) == pytest.approx((0.2, 0.3))
