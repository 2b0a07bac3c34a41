"""Batches cut up over steps and over processes: the same gradient, from a whole tiny system in float64."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import in_double
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, multiprocessing

from e2erag.config import RAGConfig
from e2erag.extract import ExtractorConfig
from e2erag.questions import Question
from e2erag.rag import RAG
from e2erag.retriever import RetrieverConfig
from e2erag.retriever.ranks import gathered
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import OBJECTIVES, Options, Run

Found = dict[str, tuple[Tensor, Tensor]]

LINES = [
    ["accident number NYC08", "the pilot was 85", "engine maker lycoming", "seats 4"],
    ["medical exam 1/2/2007", "registration N5921D", "landing gear tailwheel", "damage none"],
]
ASKED = [
    Question(text, (answer,))
    for text, answer in (("how old was the pilot ?", "85"), ("who made the engine ?", "lycoming"), ("seats ?", "4"),
                         ("registration ?", "N5921D"), ("damage ?", "none"), ("landing gear ?", "tailwheel"),
                         ("exam ?", "1/2/2007"), ("accident ?", "NYC08"))
]  # fmt: skip
DRAWS = 4
KS = (8, 3)
"""Passages read of eight."""


def system(gates: str = "attend", held: int = 10**9) -> RAG:
    """Eight passages of a line each; so many tokens' activations are held, and none of the rest."""
    rag = tiny_rag(
        retriever=RetrieverConfig(gates=gates, token_budget=64, held_tokens=held),
        extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(1,), identity_lines=1, kinds=()),
        config=RAGConfig(k=8, mode="soft", precision="float32"),
    )
    generator = rag.model.generator
    generator.config = replace(generator.config, token_budget=256, held_tokens=held)
    in_double(rag.model)
    rag.index([tiny_document(LINES)])
    return rag


def drawn(name: str, k: int, before: int) -> Options:
    """The random numbers that the whole batch's questions behind these `before` ones get."""
    noise = torch.Generator().manual_seed(5)
    if name == "gumbel":
        torch.rand(before, k, dtype=torch.float64, generator=noise)
    elif before:
        torch.multinomial(torch.ones(before, k + 1), DRAWS, replacement=True, generator=noise)
    return Options(samples=DRAWS if name == "rloo" else k // 2, noise=noise)


def slopes(rag: RAG, k: int, first: int = 0, count: int = 8, names: Sequence[str] = tuple(OBJECTIVES)) -> Found:
    """Per objective the loss of each of these questions, and the gradient of their mean in every parameter, as one
    vector."""
    terms = rag.terms(ASKED[first : first + count], k, "soft")
    assert (terms.ids >= 0).sum(1).eq(k).all()
    learning = [p for p in rag.model.parameters() if p.requires_grad]
    found = {}
    for name in names:
        loss = OBJECTIVES[name](terms, drawn(name, k, first))
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        parts = torch.autograd.grad(loss.mean(), learning, **options)
        found[name] = loss.detach(), torch.cat([part.flatten() for part in parts])
    return found


def rank(number: int, folder: str) -> None:
    """One of two processes with half of the questions; gradients are averaged as DistributedDataParallel does."""
    rag = system()  # made before the ranks meet: from then on transformers saves from rank 0 alone
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    made = {}
    for k in KS:
        for name, (loss, slope) in slopes(rag, k, 4 * number, 4).items():
            distributed.all_reduce(slope)
            made |= {f"{k} {name} loss": torch.cat(gathered(loss)), f"{k} {name}": slope / 2}
    if number == 0:
        save_file(made, f"{folder}/slopes.safetensors")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def whole() -> dict[int, Found]:
    """All eight questions at once, with every passage read and with three of them."""
    rag = system()
    return {k: slopes(rag, k) for k in KS}


def same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], name: str, k: int) -> None:
    """Losses and gradients."""
    for here, there in zip(got, expected, strict=True):
        torch.testing.assert_close(here, there, atol=1e-9, rtol=1e-6, msg=lambda text: f"{name}, K = {k}: {text}")


def test_two_processes_are_one_with_the_joined_batch(whole: dict[int, Found], tmp_path: Path) -> None:
    """Every objective, `contrastive` with the other rank's passages as negatives and gradient back to that rank, those
    that draw with the same numbers; with all passages read, and with three of eight."""
    multiprocessing.spawn(rank, (str(tmp_path),), nprocs=2)
    both = load_file(tmp_path / "slopes.safetensors")
    for k, one in whole.items():
        for name, expected in one.items():
            assert expected[1].abs().max() > 1e-6
            same((both[f"{k} {name} loss"], both[f"{k} {name}"]), expected, name, k)


@pytest.mark.parametrize("k", KS)
def test_eight_steps_of_one_question_are_one_of_eight(whole: dict[int, Found], k: int) -> None:
    """Losses and accumulated gradients of 8 × 1 are those of 1 × 8: of all but `contrastive`, which lives off its
    batch."""
    rag = system()
    alone = [slopes(rag, k, at, 1) for at in range(len(ASKED))]
    for name, expected in whole[k].items():
        loss, slope = torch.cat([one[name][0] for one in alone]), torch.stack([one[name][1] for one in alone]).mean(0)
        if name == "contrastive":
            assert not slope.any()
        else:
            same((loss, slope), expected, name, k)


@pytest.mark.parametrize("k", KS)
def test_gradient_caching_is_the_plain_gradient(whole: dict[int, Found], k: int) -> None:
    """Of every objective: nothing held, so each padded batch of encoder and reader is computed again going back."""
    rag, calls = system(held=0), Counter[str]()
    stages = {"passage": rag.model.retriever.passage.transformer, "reader": rag.model.generator.model.get_decoder()}
    for stage, module in stages.items():
        module.register_forward_hook(lambda *_, stage=stage: calls.update([stage]))
    with torch.no_grad():
        rag.terms(ASKED, k, "soft")
    once = Counter(calls)
    cached = slopes(rag, k)
    assert all(calls[stage] > 3 * once[stage] > 3 for stage in stages)  # before, forward, and several times backward
    for name, got in cached.items():
        for here, there in zip(got, whole[k][name], strict=True):
            torch.testing.assert_close(here, there, atol=1e-9, rtol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_terms_of_tokens_sum_to_the_answers() -> None:
    """log p of an answer is its tokens'; lengths count the end token; vectors give the scores of what was found."""
    terms = system().terms(ASKED[:3], 4, "soft")
    torch.testing.assert_close(terms.token_logp.sum(2), terms.answer_logp)
    for i, length in enumerate(terms.length.tolist()):
        assert (terms.token_logp[i, :, :length] < 0).all()
        assert not terms.token_logp[i, :, length:].any()
    scores = (terms.passage_rows @ terms.question_rows[:, :, None])[:, :, 0]
    torch.testing.assert_close(scores.log_softmax(1), terms.prior_logp.log_softmax(1))


def trained(objective: str, k: int, questions: int, **settings: object) -> tuple[dict[str, Tensor], Run]:
    """What learns and what is remembered after two epochs, the index encoded anew after every step. Nothing is clipped
    of what questions say of a passage's lines, for a batch's questions say it together."""
    rag, refreshed = system(), []
    refresh = rag.refresh
    rag.refresh = lambda: refreshed.append(refresh())
    rows = [{"question": q.question, "answers": list(q.answers)} for q in ASKED[:questions]]
    run = rag.fit(rows, objective=objective, k=k, epochs=2, refresh_every=1, gate_clip=0.0, progress=False, **settings)
    assert len(refreshed) == run.steps - 1
    values = rag.model.state_dict().items()
    return {name: value.detach().clone() for name, value in values if value.is_floating_point()}, run


@pytest.mark.parametrize(
    ("objective", "k", "questions", "batch_size"),
    [("marginal", 8, 8, 2), ("rag_sequence", 3, 7, 2), ("marginal", 3, 8, 1)],
)
def test_training_accumulates_to_the_step_of_one_batch(objective: str, k: int, questions: int, batch_size: int) -> None:
    """2 × 4, or 1 × 8, is 8 × 1, to the weights after two epochs, and so is what is logged; of seven the last batch has
    one, which weighs as one question does. Rates and refreshes go by steps."""
    expected, once = trained(objective, k, questions, batch_size=8)
    got, run = trained(objective, k, questions, batch_size=batch_size, accumulate=8 // batch_size)
    assert run.steps == once.steps == len(run.history) == 2
    assert [row["index_age"] for row in run.history] == [0, 0]
    start = system().model.state_dict()
    assert sum(bool((expected[name] - start[name]).abs().max() > 1e-5) for name in expected) > 20
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-6, msg=lambda t, n=name: f"{n}: {t}")
    for a, b in zip(once.history, run.history, strict=True):
        alike = [name for name in a if name not in ("distinct", "staleness")]  # of a batch
        assert {name: b[name] for name in alike} == pytest.approx({name: a[name] for name in alike}, rel=1e-5, abs=1e-6)


def test_what_is_logged_of_a_stages_gradient_is_its_norm() -> None:
    """Before anything is clipped, where the loss is all that the stage learns from."""
    _, run = trained("rag_sequence", 8, 8, batch_size=8, gates="soft", negligible=0.0)
    rag = system()
    OBJECTIVES["rag_sequence"](rag.terms(ASKED, 8, "soft"), Options()).mean().backward()
    for stage in ("retriever", "generator"):
        slopes = [p.grad for p in rag.model.get_submodule(stage).parameters() if p.grad is not None]
        norm = torch.stack([slope.norm() for slope in slopes]).norm()
        assert run.history[0][f"gradient_{stage}"] == pytest.approx(norm.item(), rel=1e-6)


def test_a_questions_slope_is_bounded_alike_however_a_step_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gate_clip` over the questions of a step, of which a batch holds a part."""
    limits, rag = [], system()
    terms = rag.terms
    monkeypatch.setattr(rag, "terms", lambda *a, slope_limit, **n: limits.append(slope_limit) or terms(*a, **n))
    rows = [{"question": q.question, "answers": list(q.answers)} for q in ASKED[:7]]
    rag.fit(rows, epochs=1, k=4, gate_clip=0.5, batch_size=2, accumulate=4, progress=False)
    assert limits == pytest.approx([0.5 / 7] * 4)


def test_the_last_step_of_an_epoch_is_the_mean_of_what_is_left() -> None:
    """Three questions by one, two to a step: the second step has one, and follows all of its gradient."""
    _, whole = trained("marginal", 8, 3, batch_size=2)
    _, run = trained("marginal", 8, 3, batch_size=1, accumulate=2)
    assert run.steps == whole.steps == 4
    for a, b in zip(whole.history, run.history, strict=True):
        assert b["gradient_generator"] == pytest.approx(a["gradient_generator"], rel=1e-5)
