"""Runs: what learns, what doesn't, what is logged, and what a wrong setting is told."""

import csv
import json
import math
import signal
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROWS, quick, weights
from torch import Tensor

from e2erag import RAG, RAGConfig
from e2erag.extract import GateMode
from e2erag.generator import Row
from e2erag.joint import Reading
from e2erag.questions import Question
from e2erag.retriever import IndexConfig, RetrieverConfig
from e2erag.testing import ReaderKind, tiny_document, tiny_rag
from e2erag.train import OBJECTIVES, FitConfig, Options
from e2erag.train.health import FIGURES
from e2erag.train.module import STAGES, TrainModule, gold
from e2erag.train.objectives import RETRIEVER_ALONE, negligible


def test_a_run_lowers_the_loss_and_leaves_a_fresh_index(rag: RAG) -> None:
    """Twenty passes over four questions; afterwards the index holds what the trained weights give."""
    run = quick(rag, epochs=20, lr_generator=3e-3, lr_retriever=1e-3, lr_extractor=1e-2)
    losses = [row["loss"] for row in run.history]
    assert run.steps == len(losses) == 40
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    before = rag.index_.vectors.clone()
    rag.refresh()
    assert torch.equal(before, rag.index_.vectors)


def test_rows_are_trained_on_in_the_dtype_they_are_kept_in(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the memory stays half the memory: at every step, through refreshes whole and partial."""
    rag.config = replace(rag.config, index=IndexConfig(dtype="float16"))
    rag.refresh()
    terms, seen = rag.terms, []

    def noted(*given: object, **named: object) -> object:
        seen.append(rag.index_.vectors.dtype)
        return terms(*given, **named)

    monkeypatch.setattr(rag, "terms", noted)
    for share in (1.0, 0.5):
        quick(rag, refresh_every=1, refresh_share=share)
    assert seen == [torch.float16] * 4
    assert rag.index_.vectors.dtype == torch.float16


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_read_without_gradient_teaches_the_reader_next_to_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With most of p(z|x) out of reach: a passage's share of the tail isn't its share of an objective without one."""
    torch.manual_seed(1)
    system = tiny_rag(retriever=RetrieverConfig(temperature=1.0))
    system.index([tiny_document([[f"pilot {i} was {n} ."] for i in range(9)], f"{n}.pdf") for n in range(12)])
    asked = [Question(f"how old was pilot {i} ?", (str(i),), "1.pdf", i + 1) for i in range(4)]
    slopes, rows, read = [], [], system.model.generator.token_log_likelihood

    def counted(given: list[Row], *args: Any) -> Tensor:
        rows.append((torch.is_grad_enabled(), len(given)))
        return read(given, *args)

    monkeypatch.setattr(system.model.generator, "token_log_likelihood", counted)
    for share in (0.0, 0.02):
        how, tail = negligible((name,), share)
        rows.clear()
        terms = system.terms(asked, 4, "soft", negligible=how, tail=tail)
        assert (terms.prior_logp.exp().sum(1) < 0.2).all()
        if share == 0:  # the K of four questions, and the closed book of those that learn from it
            learn = 0 if name in RETRIEVER_ALONE else 20 if name in ("marginal", "rb", "rloo") else 16
            assert [sum(n for grad, n in rows if grad == each) for each in (True, False)] == [learn, 20 - learn]
        system.model.zero_grad()
        options = Options(noise=torch.Generator().manual_seed(0), samples=2)
        loss = OBJECTIVES[name](terms, options).mean()
        loss.backward()
        slopes.append([None if p.grad is None else p.grad.clone() for p in system.model.generator.parameters()])
    if name in RETRIEVER_ALONE:
        assert all(slope is None for slope in slopes[0] + slopes[1])
        assert not terms.answer_logp.requires_grad  # nothing was held for it
        return
    exact, less = (torch.cat([slope.flatten() for slope in each if slope is not None]) for each in slopes)
    assert exact.norm() > 0
    assert (exact - less).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("frozen", ["extractor", "retriever", "generator"])
def test_a_frozen_stage_keeps_its_weights_and_the_others_move(rag: RAG, frozen: str) -> None:
    """Bit for bit; and the stage can learn again in the next run."""
    stages = ("extractor", "retriever", "generator")
    before = {stage: weights(rag, stage) for stage in stages}
    quick(rag, freeze=(frozen,))
    for stage in stages:
        moved = any(not torch.equal(a, b) for a, b in zip(before[stage], weights(rag, stage), strict=True))
        assert moved == (stage != frozen)
    assert all(p.requires_grad for p in rag.model.parameters())


def test_a_frozen_tower_of_two_stays_and_the_other_learns() -> None:
    """Untied, `retriever.passage` frozen: its parameters are its own, so nothing moves them (in Atlas they did)."""
    from e2erag.retriever import RetrieverConfig

    rag = tiny_rag(retriever=RetrieverConfig(temperature=0.2, tied=False))
    rag.index([tiny_document([["the pilot was 85", "seats 4"], ["engine lycoming", "damage none"]])])
    passage, query = weights(rag, "retriever.passage"), weights(rag, "retriever.query")
    quick(rag, freeze=("retriever.passage",))
    assert all(torch.equal(a, b) for a, b in zip(passage, weights(rag, "retriever.passage"), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(query, weights(rag, "retriever.query"), strict=True))


def test_every_parameter_is_in_exactly_one_group(rag: RAG) -> None:
    """Tied towers and tied embeddings count once; each stage has its own rate."""
    config = FitConfig(lr_extractor=1e-1, lr_retriever=1e-2, lr_generator=1e-3)
    groups = TrainModule(rag, config, 1).configure_optimizers()["optimizer"].param_groups
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) == len({id(p) for p in rag.model.parameters()})
    rates = {group["name"]: group["initial_lr"] for group in groups}
    assert rates == {"extractor": 1e-1, "retriever": 1e-2, "generator": 1e-3}


def test_one_of_two_tied_towers_cannot_be_frozen(rag: RAG) -> None:
    """They are the same parameters, so the other would stay too."""
    with pytest.raises(ValueError, match="the towers are tied"):
        quick(rag, freeze=("retriever.query",))


@pytest.mark.filterwarnings("ignore")
def test_a_diverged_run_says_so(rag: RAG, tmp_path: Path) -> None:
    """A NaN in the reader: the loss is named, the settings to lower too, the old index is back, the run is drawn."""
    index = rag.index_
    weight = rag.model.generator.model.get_decoder().layers[0].mlp.up_proj.weight
    kept = weight.detach().clone()
    weight.data[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="the loss is nan at step 0: lower the learning rates"):
        quick(rag, folder=str(tmp_path))
    assert rag.index_ is index
    assert (tmp_path / "report.png").is_file()
    weight.data.copy_(kept)
    assert rag.ask("seats ?").text is not None


def test_ctrl_c_in_training_is_ctrl_c(rag: RAG, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not the end of the process, and the next one counts too; a run in a folder leaves what it has logged."""
    terms, calls = rag.terms, []

    def ask(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return terms(*given, **named)

    monkeypatch.setattr(rag, "terms", ask)
    with pytest.raises(KeyboardInterrupt):
        quick(rag, folder=tmp_path, batch_size=1)
    assert len(calls) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2


def test_everything_frozen_is_refused(rag: RAG) -> None:
    """There must be something to learn."""
    with pytest.raises(ValueError, match="every stage is frozen"):
        quick(rag, freeze=("extractor", "retriever", "generator"))
    assert all(p.requires_grad for p in rag.model.parameters())


def test_what_shows_health_is_logged_to_csv(rag: RAG, tmp_path: Path) -> None:
    """A row per step with every figure of `FIGURES`; the config and the dashboard beside."""
    quick(rag, folder=str(tmp_path / "run"), seed=3)
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        assert all(math.isfinite(float(row[name])) for name in FIGURES)
    assert (tmp_path / "run" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 3


def test_a_run_takes_its_folder_as_a_path_too(rag: RAG, tmp_path: Path) -> None:
    """A `Path` is written down as its text."""
    rag.fit(ROWS, epochs=1, folder=tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["folder"] == str(tmp_path / "run")


def test_a_seed_makes_a_run_repeatable(rag: RAG) -> None:
    """Shuffling and gate noise come from it."""
    losses = []
    for seed in (1, 1, 2):
        system = tiny_rag()
        system.index(rag.corpus.documents)
        run = quick(system, seed=seed, batch_size=4, gates="sample")  # one batch: the noise alone differs
        losses.append([row["loss"] for row in run.history])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_are_chosen_by_name(rag: RAG, objective: str) -> None:
    """Each trains, with a finite loss and a gradient in every stage that it teaches."""
    fewer = {"samples": 1} if objective == "gumbel" else {}  # than the k read
    (row,) = quick(rag, objective=objective, batch_size=4, **fewer).history
    assert set(FIGURES) - {"drift"} <= set(row)  # drift: where a refresh waits for it
    assert all(math.isfinite(value) for value in row.values())
    assert (row["gradient_retriever"] > 0) == (objective != "reader")
    assert (row["gradient_generator"] > 0) == (objective not in ("pdist", "lsr", "loop", "contrastive"))


def test_gumbel_draws_fewer_passages_than_are_read() -> None:
    """With all of them drawn p(z|x) would never reach the reader."""
    with pytest.raises(ValueError, match="fewer than all, and got samples=4 of k=4: lower samples, or read more"):
        FitConfig(objective={"marginal": 1, "gumbel": 0.5}, samples=4)
    with pytest.raises(ValueError, match="of k=1: lower samples, or read more"):
        FitConfig(objective="gumbel", k=1)
    assert [FitConfig(objective="gumbel", k=k).drawn for k in (2, 4, 8, 16)] == [1, 2, 4, 4]
    assert FitConfig(objective="rloo").drawn == 4
    assert FitConfig(objective="gumbel", k=8, samples=7).drawn == 7


def test_objectives_compose_by_weight(rag: RAG) -> None:
    """The loss is the weighted parts' sum, each logged, with the entropy of the target beside."""
    (row,) = quick(rag, objective={"marginal": 1, "pdist": 0.5}, batch_size=4).history
    assert row["loss"] == pytest.approx(row["loss_marginal"] + row["loss_pdist"], rel=1e-5)
    assert 0 <= row["target_entropy_pdist"] <= math.log(2) + 1e-6


@pytest.mark.parametrize("door", ["flag", "flags", "yaml"])
def test_objectives_come_through_every_door(door: str, tmp_path: Path) -> None:
    """A name or a mapping, from the command line and from a YAML file, reaches the same configuration."""
    from jsonargparse import auto_cli

    def fit(settings: FitConfig = FitConfig()) -> FitConfig:  # noqa: B008 - frozen; as the command line has it
        return settings

    mapping = {"marginal": 1.0, "pdist": 0.5}
    (tmp_path / "run.yaml").write_text("settings:\n  objective:\n    marginal: 1\n    pdist: 0.5\n")
    given, expected = {
        "flag": (["--settings.objective", "emdr2"], "emdr2"),
        "flags": (["--settings.objective", '{"marginal": 1, "pdist": 0.5}'], mapping),
        "yaml": (["--config", str(tmp_path / "run.yaml")], mapping),
    }[door]
    assert auto_cli(fit, args=given).objective == expected


def test_gold_passages_are_those_on_the_page_a_question_names(rag: RAG) -> None:
    """A known page marks its own passages, an unknown one all that were found."""
    asked = [Question("seats ?", ("4",), "a.pdf", 2), Question("seats ?", ("4",))]
    found = rag.search([question.question for question in asked], k=4).ids
    marked = gold(rag, asked, found)
    for i, known in zip(found[0].tolist(), marked[0].tolist(), strict=True):
        assert known == (rag.passage(i).document.name == "a.pdf" and 2 in rag.passage(i).pages)
    assert marked[1].all()


def test_a_gold_passage_that_the_retriever_does_not_reach_gets_into_the_softmax(rag: RAG) -> None:
    """K = 1, and what is found is of the other document: of the gold page's passages the one with the answer's word is
    read beside it and is the positive. Else every question would be left out, and the loss be 0."""
    asked = []
    for row in ROWS:
        found = rag.passage(int(rag.search([row["question"]], k=1).ids[0, 0]))
        file, answer = ("b.pdf", "N74SR") if found.document.name == "a.pdf" else ("a.pdf", "N5921D")
        asked.append(Question(row["question"], (answer,), file, 2))
    plain, terms = rag.terms(asked, 1, "soft"), rag.terms(asked, 1, "soft", gold=True)
    assert not gold(rag, asked, plain.ids).any()
    assert torch.equal(terms.ids[:, :1], plain.ids)
    assert gold(rag, asked, terms.ids).tolist() == [[False, True]] * len(asked)
    for question, ids in zip(asked, terms.ids.tolist(), strict=True):
        assert question.answers[0] in rag.passage(ids[1]).text
    assert terms.prior_logp.exp().sum(1).max() <= 1 + 1e-6
    (row,) = rag.fit(asked, objective="contrastive", epochs=1, batch_size=4, k=1, progress=False).history
    assert row["loss"] > 0.1
    assert row["answer_found"] == 0  # by the retriever itself


def test_a_gold_passage_is_added_once_and_only_where_there_is_one(rag: RAG) -> None:
    """Where the page's passages were all found, where none is indexed and where none is named, the column is empty."""
    everything = len(rag.corpus.passages)
    asked = [Question("seats ?", ("4",), *page) for page in (("a.pdf", 1), ("a.pdf", 9), ("c.pdf", 1), (None, None))]
    ids = rag.terms(asked, everything, "soft", gold=True).ids
    assert (ids[:, -1] == -1).all()
    assert ids.shape == (4, everything + 1)


def test_negatives_change_a_steps_gradient_and_not_its_loss(rag: RAG) -> None:
    """On the passages' side alone: of two towers only the passages' learns, and the reader's gradient is the same."""
    firsts = []
    for negatives in (0, 4):
        system = tiny_rag(retriever=RetrieverConfig(temperature=0.2, tied=False))
        system.index(rag.corpus.documents)
        firsts.append(quick(system, k=1, negatives=negatives, freeze=("retriever.query",)).history[0])
    for name in ("loss", "mass", "gradient_generator"):
        assert firsts[0][name] == pytest.approx(firsts[1][name], rel=1e-5)
    for name in ("gradient_extractor", "gradient_retriever"):
        assert firsts[0][name] != pytest.approx(firsts[1][name], rel=1e-4)
    with pytest.raises(ValueError, match="negatives must be at least 0, got -1"):
        FitConfig(negatives=-1)


def test_wrong_settings_are_told_the_right_ones(rag: RAG) -> None:
    """A wrong name gets the nearest one; a wrong objective, stage or number the ones there are."""
    with pytest.raises(TypeError, match=r"fit has no setting 'epoch': did you mean epochs\?"):
        quick(rag, epoch=3)
    with pytest.raises(ValueError, match=r"there is no objective 'rag_tokens': did you mean rag_token\?"):
        FitConfig(objective={"rag_tokens": 1.0})
    with pytest.raises(ValueError, match="target_temperature must be positive, got 0"):
        FitConfig(target_temperature=0.0)
    with pytest.raises(ValueError, match=r"freeze takes stages out of extractor, .*, got reader"):
        FitConfig(freeze=("reader",))
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        FitConfig(epochs=0)
    assert set(STAGES) >= {"extractor", "retriever", "generator"}


def test_a_failed_run_leaves_the_system_usable(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the middle: the gate mode is as before and questions are answered."""
    monkeypatch.setattr(rag, "terms", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quick(rag)
    assert rag.config.mode == "hard"
    assert rag.ask("seats ?").text is not None


def test_objectives_that_draw_passages_are_refused_where_passages_are_read_together() -> None:
    """All passages have the same likelihood then, so `rloo` would have nothing to teach; `marginal` learns."""
    rag = tiny_rag(config=RAGConfig(k=2, precision="float32", reading="concat"))
    rag.index([tiny_document([["the pilot was 85", "seats 4"], ["engine lycoming", "damage none"]])])
    with pytest.raises(ValueError, match=r'rloo draws passages, .*take one of marginal, .*reading="'):
        quick(rag, objective={"reader": 1, "rloo": 1})
    assert quick(rag).steps == 2


@pytest.mark.parametrize(("objective", "size", "told"), [
    ("contrastive", 1, 1), ({"marginal": 1, "contrastive": 0.1}, 1, 1), ("contrastive", 2, 0), ("marginal", 1, 0),
])  # fmt: skip
def test_a_batch_of_one_question_has_nothing_to_contrast(
    rag: RAG, objective: str | dict[str, float], size: int, told: int, recwarn: pytest.WarningsRecorder
) -> None:
    quick(rag, objective=objective, batch_size=size, accumulate=2)
    assert sum("raise batch_size" in str(each.message) for each in recwarn) == told


@pytest.mark.parametrize(
    ("reader", "reading"), [("llama", "concat"), ("llama", "parallel"), ("t5", "concat"), ("bart", "fid")]
)
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_passages_read_together_are_read_alone_too_where_they_are_compared(
    reader: ReaderKind, reading: Reading, mode: GateMode
) -> None:
    """`alone_logp` is `token_logp` of the same weights that read one at a time, without gradient; `pdist` and `emdr2`
    are what it and the joint reading make of them."""
    pages = [tiny_document([[f"pilot {i} was {n} ." for i in range(3)]], f"{n}.pdf") for n in range(6)]
    rows = [Question(row["question"], tuple(row.get("answers", [row.get("answer")]))) for row in ROWS]
    one, all_ = (
        tiny_rag(config=RAGConfig(k=3, precision="float32", mode=mode, reading=how), reader=reader)
        for how in ("marginal", reading)
    )
    for system in (one, all_):
        system.index(pages)
    single, fused = one.terms(rows, 3, mode), all_.terms(rows, 3, mode, alone=True)
    torch.testing.assert_close(fused.alone_logp, single.token_logp.detach())
    assert not fused.alone_logp.requires_grad
    assert not torch.allclose(fused.token_logp, single.token_logp, atol=1e-3)
    pdist, emdr2 = OBJECTIVES["pdist"], OBJECTIVES["emdr2"]
    torch.testing.assert_close(pdist(fused, Options()), pdist(single, Options()))
    share = fused.prior_logp.exp() / fused.prior_logp.exp().sum(1, keepdim=True)
    likely = single.answer_logp.exp()
    torch.testing.assert_close(
        emdr2(fused, Options()), -fused.answer_logp[:, 0] - (share * likely).sum(1).log(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("objective", [{"reader": 1, "pdist": 1}, "emdr2", "emdr2_token", "loop", "contrastive"])
def test_a_retriever_learns_from_passages_alone_beside_a_reader_of_all(objective: str | dict[str, float]) -> None:
    """Atlas' recipe, and EMDR²'s: a reader of all K learns where one of the objectives teaches it."""
    rag = tiny_rag(config=RAGConfig(k=2, precision="float32", reading="fid"), reader="t5")
    rag.index([tiny_document([[f"pilot {i} was {n} ." for i in range(3)]], f"{n}.pdf") for n in range(6)])
    for row in quick(rag, objective=objective).history:
        assert row["gradient_retriever"] > 0
        assert (row["gradient_generator"] > 0) == (objective not in ("loop", "contrastive"))


def test_an_objective_that_teaches_only_what_is_frozen_says_so(rag: RAG) -> None:
    """`contrastive` teaches the retriever alone; torch's own error would name no setting."""
    with pytest.raises(ValueError, match=r"learns from contrastive: leave a stage .* freeze \(retriever, extractor"):
        quick(rag, objective="contrastive", freeze=("retriever", "extractor"))


def test_a_temperature_that_learns_learns() -> None:
    """At its own rate, in a group of its own; a fixed one is no parameter."""
    rag = tiny_rag(retriever=RetrieverConfig(temperature=0.2, learn_temperature=True), config=RAGConfig(k=2))
    rag.index([tiny_document([["the pilot was 85", "engine continental"], ["seats 2", "registration N5921D"]])])
    before = {name: p.clone() for name, p in rag.model.retriever.named_parameters()}
    quick(rag, epochs=1, k=2, lr_retriever=0.0, lr_temperature=0.05, weight_decay=0.0)
    moved = {name for name, p in rag.model.retriever.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"log_temperature"}
    assert rag.model.retriever.temperature.item() != pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("share", [1.0, -0.1, math.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    """With all of the likelihood negligible nothing would teach the reader."""
    with pytest.raises(ValueError, match=r"negligible is a share of the likelihood in \[0, 1\), got"):
        FitConfig(negligible=share)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clip": -1.0}, "clip is a number, at least 0"),
        ({"lr_retriever": -1e-5}, "lr_retriever is a number, at least 0"),
        ({"gate_weight": math.nan}, "gate_weight is a number, at least 0"),
        (
            {"keep_rate": 1.0},
            'keep_rate is a share between 0 and 1 .* freeze=\\("extractor.gates",\\) keeps every line',
        ),
        ({"cut_rate": 0.0}, "cut_rate is a share between 0 and 1"),
        ({"gate_temperature": (1.0, 0.0)}, "gate_temperature is two numbers above 0"),
        ({"target_temperature": math.inf}, "target_temperature must be positive"),
    ],
)
def test_a_setting_that_no_run_could_follow_is_refused(changes: dict[str, Any], said: str) -> None:
    """Before anything is indexed or read."""
    with pytest.raises(ValueError, match=said):
        FitConfig(**changes)


def again() -> RAG:
    """The same system every time."""
    rag = tiny_rag(config=RAGConfig(k=2, mode="soft", precision="float32"))
    rag.index([tiny_document([[f"pilot {i} was {20 + i}", f"engine {i} seats 4"] for i in range(4)])])
    return rag


def test_no_clip_is_no_bound() -> None:
    """The step that a bound far above its norm leaves alone."""
    rag, other = again(), again()
    quick(rag, clip=0.0)
    quick(other, clip=1e6)
    assert all(map(torch.equal, rag.model.state_dict().values(), other.model.state_dict().values()))


def test_what_lines_should_be_kept_and_how_much_that_weighs_is_a_setting() -> None:
    """Gates move towards the share to keep where that weighs all, and stay where it weighs nothing and nothing pays."""
    rag = again()
    start, kept = rag.model.gates(rag.corpus, "soft").extraction.read.mean().item(), {}
    for rate, weight in ((0.9, 100.0), (0.1, 100.0), (0.1, 0.0)):
        other = again()
        quick(other, epochs=8, keep_rate=rate, gate_weight=weight, token_price=0.0, lr_extractor=0.05, gate_clip=1e-9)
        kept[rate, weight] = other.model.gates(other.corpus, "soft").extraction.read.mean().item()
    assert kept[0.1, 100.0] < kept[0.9, 100.0] - 1
    assert kept[0.1, 100.0] < kept[0.1, 0.0] - 1
    assert kept[0.1, 0.0] == pytest.approx(start, abs=0.5)


def test_a_weight_of_one_is_no_other_run() -> None:
    """A run that began in Python goes on from the command line, whose weights are numbers with a point."""
    begun = import_module("e2erag.train.fit")._beginning
    names = {begun(FitConfig(objective=named), []) for named in ("marginal", {"marginal": 1}, {"marginal": 1.0})}
    assert len(names) == 1


def test_one_stage_to_freeze_needs_no_list() -> None:
    """Its letters are no stages."""
    config = FitConfig()
    object.__setattr__(config, "freeze", "extractor")  # as a caller may whom no type checker stops
    config.__post_init__()
    assert config == FitConfig(freeze=("extractor",))
