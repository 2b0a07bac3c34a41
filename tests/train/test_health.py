"""The figures of a step against sums written out, and what a collapse is told."""

import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from e2erag import RAG, RAGConfig
from e2erag.corpus import Gates
from e2erag.extract import Extraction, Extractor, ExtractorConfig
from e2erag.joint import Terms
from e2erag.questions import Question
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import FitConfig, Options
from e2erag.train.callbacks import CollapseGuard, symptoms
from e2erag.train.dashboard import draw_run, running_mean
from e2erag.train.health import answer_found, distinct, figures, health, target_entropy
from e2erag.train.module import TrainModule
from e2erag.train.objectives import untaught

HEALTHY = {
    "distinct": 0.8, "entropy": 1.0, "utility": 0.5, "gate_retrieve": 0.9, "gate_read": 0.9, "gradient_extractor": 0.1,
    "gradient_retriever": 0.1, "gradient_generator": 0.1,
}  # fmt: skip
ROWS = [{"question": "how old was the pilot ?", "answers": ["85"]}, {"question": "seats ?", "answers": ["4"]}]


def one_question() -> Terms:
    """Passages of probability .5 and .3 explain the answer with .8 and .1, none with .05; a third was not found."""
    line = torch.tensor([0.0, 4.0])
    out = Extraction(line, line, line, line, line, line, line)._replace(retrieve=torch.tensor([1.0, 4.0]))
    return Terms(
        prior_logp=torch.tensor([[0.5, 0.3, 0.0]]).log(),
        answer_logp=torch.tensor([[0.8, 0.1, 0.0]]).log(),
        closed_book_logp=torch.tensor([0.05]).log(),
        ids=torch.tensor([[4, 2, -1]]),
        gates=Gates(line, line, out),
        tokens_kept=torch.tensor(0.5),
        staleness=torch.tensor(0.25),
    )


def test_the_figures_are_the_sums_they_say_they_are() -> None:
    """Prior (.5, .3, tail .2); joint (.4, .03, .01); renormalised over the K (.625, .375)."""
    row = {name: float(value) for name, value in health(one_question(), Extractor(ExtractorConfig()), 3).items()}
    likelihood = 0.4 + 0.03 + 0.01

    def entropy(*p: float) -> float:
        return -sum(x * math.log(x) for x in p)

    assert row["entropy"] == pytest.approx(entropy(0.5, 0.3, 0.2), rel=1e-5)
    assert row["posterior_entropy"] == pytest.approx(
        entropy(0.4 / likelihood, 0.03 / likelihood, 0.01 / likelihood), rel=1e-5
    )
    assert row["effective"] == pytest.approx(math.exp(entropy(0.625, 0.375)), rel=1e-5)
    assert row["mass"] == pytest.approx(0.8, rel=1e-5)
    assert row["posterior_found"] == pytest.approx(0.43 / likelihood, rel=1e-5)
    assert row["spread"] == pytest.approx(np.std(np.log([0.5, 0.3])), rel=1e-5)
    assert row["utility"] == pytest.approx(math.log(likelihood / 0.05), rel=1e-5)
    assert row["staleness"] == 0.25
    assert distinct(torch.tensor([4, 2, -1, 4, 4])) == 0.5
    soft = 0.5 / torch.sigmoid(torch.tensor(1.5)).item()  # the first line's gate, which hard mode shuts
    assert row["gate_gap"] == pytest.approx(soft / 2, rel=1e-5)
    soft = torch.sigmoid(torch.tensor(1.0)).item() / torch.sigmoid(torch.tensor(1.5)).item()  # hard mode opens it
    assert row["gate_gap_retrieve"] == pytest.approx((1 - soft) / 2, rel=1e-5)


def test_passages_that_were_mined_or_named_do_not_count_as_found() -> None:
    """They stand behind the K found, where they are read; figures are of the K."""
    terms, extractor = one_question(), Extractor(ExtractorConfig())
    more = replace(
        terms,
        prior_logp=torch.cat([terms.prior_logp, torch.tensor([[0.1]]).log()], 1),
        answer_logp=torch.cat([terms.answer_logp, torch.tensor([[0.9]]).log()], 1),
        ids=torch.tensor([[4, 2, -1, 4]]),
    )
    assert health(more, extractor, 3) == health(terms, extractor, 3)
    assert health(more, extractor, 4)["mass"] > health(terms, extractor, 3)["mass"]


def test_a_targets_entropy_is_its_sum_written_out() -> None:
    """log p of −1 and −2 per token at temperature .5: shares e⁻² and e⁻⁴ of their sum; nothing of what wasn't found."""
    terms = replace(one_question(), answer_logp=torch.tensor([[-3.0, -6.0, 0.0]]), length=torch.tensor([3]))
    p = 1 / (1 + math.exp(-2))
    expected = -p * math.log(p) - (1 - p) * math.log(1 - p)
    found = target_entropy(terms, ["marginal", "pdist", "lsr"], Options(temperature=0.5))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"target_entropy_pdist": expected, "target_entropy_lsr": expected}, rel=1e-5
    )


def test_answers_are_looked_for_in_what_was_found(rag: RAG) -> None:
    """One of two questions' passages holds its answer, in other letters."""
    rag.index([tiny_document([["The Pilot was OLD", "seats 4"], ["engine lycoming", "damage none"]])])
    ids = torch.tensor([list(range(len(rag.corpus.passages)))] * 2)
    asked = [Question("who ?", ("the pilot",)), Question("who ?", ("continental",))]
    assert answer_found(rag, asked, ids) == 0.5
    assert answer_found(rag, asked, torch.full((2, 1), -1)) == 0


def test_an_answer_over_two_lines_is_found_and_a_part_of_a_word_is_not(rag: RAG) -> None:
    """Words follow each other over the end of a line; "1" doesn't stand in "12"."""
    rag.index([tiny_document([["it happened in New", "York City at 12", "o'clock", "首都は東", "京です"]])])
    ids = torch.tensor([list(range(len(rag.corpus.passages)))])
    for answer, found in (("New York City", 1), ("1", 0), ("12 o'clock", 1), ("York, new", 0), ("東京", 1), ("%", 0)):
        assert answer_found(rag, [Question("where ?", (answer,))], ids) == found


def test_a_fresh_index_is_not_stale_and_one_of_other_weights_is(rag: RAG) -> None:
    """1 − cosine between what is stored and what the present weights give, of the passages found."""
    rag.index([tiny_document([["the pilot was 85", "seats 4"], ["engine lycoming", "damage none"]])])
    asked = [Question(row["question"], tuple(row["answers"])) for row in ROWS]
    assert rag.terms(asked, 2, "soft").staleness.item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        for parameter in rag.model.retriever.passage.transformer.encoder.parameters():
            parameter.mul_(1.5)
    moved = rag.terms(asked, 2, "soft").staleness.item()
    assert moved > 1e-3
    rag.refresh()
    assert rag.terms(asked, 2, "soft").staleness.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"distinct": 0.25}, "the retriever is collapsing"),
        ({"entropy": 1e-5, "utility": -0.1}, "raise the retriever's temperature"),
        ({"gate_read": 0.01}, "dropped for reading"),
        ({"gate_retrieve": 0.01}, "dropped for finding"),
        ({"gradient_retriever": 0.0}, "no gradient reaches the retriever"),
    ],
)
def test_every_symptom_is_told_with_what_to_do(change: dict[str, float], told: str) -> None:
    """A healthy step has none; one figure that is off has exactly its own."""
    assert symptoms(HEALTHY, questions=4) == []
    (found,) = symptoms(HEALTHY | change, questions=4)
    assert told in found


@pytest.mark.parametrize(("collapse", "steps", "times"), [("warn", 12, 1), ("stop", 10, 1), ("ignore", 12, 0)])
def test_a_run_that_reads_nothing_is_told_so_once_and_stopped_if_asked(collapse: str, steps: int, times: int) -> None:
    """Reading gates shut from the start; told after ten steps."""
    rag = tiny_rag()
    rag.model.extractor.gates.bias.data[1] = -5.0
    rag.index([tiny_document([["the pilot was 85", "seats 4"], ["engine lycoming", "damage none"]])])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = rag.fit(
            ROWS, epochs=12, batch_size=2, k=2, progress=False, freeze=("extractor", "retriever"), collapse=collapse
        )
    told = [str(one.message) for one in caught if "dropped for reading" in str(one.message)]
    assert (run.steps, len(told)) == (steps, times)


def test_the_warning_is_seen() -> None:
    """In a process without the tests' own frames, where Lightning's warnings are kept quiet."""
    code = (
        "from e2erag.testing import tiny_document, tiny_rag\n"
        "rag = tiny_rag()\n"
        "rag.model.extractor.gates.bias.data[1] = -5.0\n"
        "rag.index([tiny_document([['the pilot was 85', 'seats 4'], ['engine lycoming', 'damage none']])])\n"
        f"rag.fit({ROWS!r}, epochs=12, batch_size=2, k=2, progress=False, freeze=('extractor', 'retriever'))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert told.count("step 10: for 10 steps, nearly every line is dropped for reading") == 1


def test_a_collapse_is_counted_by_steps_not_by_batches() -> None:
    """Two batches to a step: the tenth step is the twentieth batch."""
    rag = tiny_rag()
    rag.model.extractor.gates.bias.data[1] = -5.0
    rag.index([tiny_document([["the pilot was 85", "seats 4"], ["engine lycoming", "damage none"]])])
    frozen = {"freeze": ("extractor", "retriever"), "progress": False}
    with pytest.warns(UserWarning, match="step 10: for 10 steps, nearly every line is dropped for reading"):
        rag.fit(ROWS, epochs=12, batch_size=1, accumulate=2, k=2, **frozen)


@pytest.mark.parametrize(("found", "warned"), [(1, True), (8, False)])
def test_questions_that_find_the_same_are_told_from_a_short_last_batch(found: int, warned: bool) -> None:
    """A step of 32 questions and of 2 more: 1 of 34 passages is the least that is different; eight are no collapse."""
    guard, row = CollapseGuard(False), dict.fromkeys(("entropy", "utility", "gate_retrieve", "gate_read"), 1.0)
    row["distinct"] = found / 34
    rag = SimpleNamespace(corpus=SimpleNamespace(passages=range(1000)))
    config = SimpleNamespace(k=1, mined=0)
    module = SimpleNamespace(
        rag=rag, config=config, weights={"marginal": 1.0}, history=[row], model=SimpleNamespace(reading="marginal")
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(guard.PATIENCE):
            for questions in (32, 2):
                module.stepped = questions == 2
                guard.on_train_batch_end(L.Trainer(logger=False), module, None, [None] * questions, 0)
    assert [("found the same passages" in str(each.message)) for each in told] == [True] * warned


def test_a_step_of_one_question_does_not_hide_a_collapse() -> None:
    """Nine questions, four at a time: the third step of every epoch has one, of which nothing can be seen."""
    rag = tiny_rag()
    rag.index([tiny_document([[f"pilot {i} was {n}" for i in range(8)]], f"{n}.pdf") for n in range(6)])
    for tower in {rag.model.retriever.query, rag.model.retriever.passage}:
        for parameter in tower.parameters():
            parameter.data.zero_()
    rows = [{"question": f"how old was pilot {i} ?", "answers": [str(i)]} for i in range(9)]
    with pytest.warns(UserWarning, match="step 14: for 10 steps, every question of a step found the same passages"):
        run = rag.fit(
            rows, epochs=12, batch_size=4, k=2, freeze=("extractor", "retriever"), progress=False, collapse="stop"
        )
    assert run.steps == 14
    assert [row["distinct"] for row in run.history[:3]] == [0.25, 0.25, 1.0]


def test_a_retriever_that_finds_the_same_for_all_is_told_where_batches_have_one_question() -> None:
    """Each batch of one finds K different passages; the step of four, the same K four times."""
    rag = tiny_rag()
    pages = [[f"pilot {i} was {n}" for i in range(8)] for n in range(6)]
    rag.index([tiny_document(pages[i : i + 1], f"{i}.pdf") for i in range(6)])
    for tower in {rag.model.retriever.query, rag.model.retriever.passage}:
        for parameter in tower.parameters():
            parameter.data.zero_()
    frozen = {"freeze": ("extractor", "retriever"), "progress": False}
    with pytest.warns(UserWarning, match="every question of a step found the same passages"):
        run = rag.fit(ROWS * 2, epochs=10, batch_size=1, accumulate=4, k=2, **frozen)
    assert {row["distinct"] for row in run.history} == {0.25}


def test_a_slope_that_is_no_number_ends_the_run_before_it_is_taken(rag: RAG) -> None:
    """The loss of the same step was one, and no weight has moved."""
    rag.index([tiny_document([["the pilot was 85", "seats 4"], ["engine lycoming", "damage none"]])])
    before = {name: value.detach().clone() for name, value in rag.model.named_parameters()}
    first = next(p for p in rag.model.generator.parameters() if p.requires_grad)
    hook = first.register_hook(lambda slope: torch.full_like(slope, math.nan))
    with pytest.raises(RuntimeError, match="gradient_generator is nan at step 0: lower the learning rates"):
        rag.fit(ROWS, epochs=1, batch_size=2, k=2, progress=False)
    hook.remove()
    assert all(torch.equal(before[name], value) for name, value in rag.model.named_parameters())


def test_the_figures_of_a_step_that_diverged_are_means_of_what_was_seen(rag: RAG) -> None:
    """The second of eight batches is no number: the gates are told as they stand, not as a quarter of that."""
    module = TrainModule(rag, FitConfig(accumulate=8), 1)
    module.log_dict = lambda *_, **__: None
    module.weight = 1 / 8
    module._note(loss=1.0, gate_read=0.8)
    with pytest.raises(RuntimeError, match="the loss is nan at step 0"):
        module._note(loss=math.nan, gate_read=0.8)
    assert module.history[-1]["gate_read"] == pytest.approx(0.8)


@pytest.mark.parametrize("objective", ["marginal", "pdist", "lsr", "loop", "contrastive", "reader"])
def test_a_stage_that_the_objective_does_not_teach_is_no_collapse(objective: str) -> None:
    """Distillation has no gradient for the reader, and the reader's own loss none for the retriever."""
    rag = tiny_rag()
    pages = [[f"pilot {i} was {n}" for i in range(8)] for n in range(6)]
    rag.index([tiny_document(pages[i : i + 1], f"{i}.pdf") for i in range(6)])
    run = rag.fit(ROWS, epochs=12, batch_size=2, k=2, progress=False, collapse="stop", objective=objective)
    assert run.steps == 12
    zero = {name for name, value in run.history[-1].items() if name.startswith("gradient_") and value == 0}
    assert zero == {f"gradient_{stage}" for stage in untaught([objective])}


def test_the_readers_own_loss_teaches_the_retriever_where_passages_are_read_together() -> None:
    """p_K stands in attention there, so a gradient that is zero is a symptom; one passage has no p_K to learn."""
    assert untaught(["reader"]) == ("retriever",)
    assert untaught(["reader"], together=True) == ()
    rag = tiny_rag(config=RAGConfig(reading="concat", precision="float32"))
    rag.index([tiny_document([[f"pilot {i} was {n}" for i in range(8)]], f"{n}.pdf") for n in range(6)])
    run = rag.fit(ROWS, epochs=1, batch_size=2, k=2, progress=False, objective="reader")
    assert all(row["gradient_retriever"] > 0 for row in run.history)


@pytest.mark.parametrize(("objective", "told"), [("rag_token", 1), ("marginal", 0), ("contrastive", 0)])
def test_one_passage_to_compare_with_none_is_warned_of(objective: str, told: int) -> None:
    """p_K of one passage is 1 whatever its score; Z and other questions' passages are something to learn from."""
    rag = tiny_rag()
    rag.index([tiny_document([[f"pilot {i} was {n}" for i in range(8)]], f"{n}.pdf") for n in range(6)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = rag.fit(ROWS, epochs=1, batch_size=2, k=1, progress=False, objective=objective)
    assert sum("nothing for the retriever to learn from" in str(each.message) for each in caught) == told
    assert all((row["gradient_retriever"] == 0) == bool(told) for row in run.history)


def test_a_corpus_too_small_to_choose_from_is_no_collapse() -> None:
    """Every question of a corpus of a few passages finds all of them, which stops no run."""
    rag = tiny_rag()
    rag.index([tiny_document([["the pilot was 85", "seats 4"], ["engine lycoming", "damage none"]])])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = rag.fit(ROWS, epochs=12, batch_size=2, progress=False, collapse="stop", lr_extractor=0.0)
    assert {row["distinct"] for row in run.history} == {0.5}
    assert [str(one.message) for one in caught if "collapsing" in str(one.message)] == []
    assert run.steps == 12


def test_everything_that_is_logged_is_drawn(rag: RAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the loss and entropies of targets too, each with a text, and in order; and nothing that isn't there."""
    run = rag.fit(ROWS, objective={"marginal": 1, "lsr": 1}, epochs=2, batch_size=2, k=2, progress=False)
    named = figures(run.history)
    panels, add = [], Figure.add_subplot
    monkeypatch.setattr(Figure, "add_subplot", lambda *given: panels.append(add(*given)) or panels[-1])
    assert draw_run(run.history, tmp_path / "run.png") == tmp_path / "run.png"
    assert [panel.get_title(loc="left").split("\n") for panel in panels] == [list(each) for each in named.items()]
    for panel, name in zip(panels, named, strict=True):
        assert panel.lines[0].get_ydata().tolist() == [row[name] for row in run.history]
    assert named.keys() == run.history[0].keys()
    assert list(named)[:5] == ["loss", "loss_marginal", "loss_lsr", "target_entropy_lsr", "answer_found"]
    assert list(figures([{"loss": 1.0}, {"drift": 1.0}])) == ["loss", "drift"]


def test_a_running_mean_leaves_out_what_is_missing() -> None:
    """Over a tenth of twenty values, so two."""
    values = np.asarray([1.0, 3.0, np.nan, 5.0] + [0.0] * 16)
    np.testing.assert_allclose(running_mean(values)[:5], [1, 2, 3, 5, 2.5])
