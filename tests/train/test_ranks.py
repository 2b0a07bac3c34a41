"""Batches cut up over steps and over processes: the same gradient, from a whole tiny system in float64."""

from collections.abc import Sequence
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
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import OBJECTIVES, Options

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
NAMES = [name for name in OBJECTIVES if name not in ("gumbel", "rloo")]
"""The others draw anew for every batch; their mean is tested with the objectives."""


def system(gates: str = "attend") -> RAG:
    """Eight passages of a line each, all of them found and read, so that no question's Z depends on its batch."""
    rag = tiny_rag(
        retriever=RetrieverConfig(gates=gates),
        extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(1,), identity_lines=1, kinds=()),
        config=RAGConfig(k=8, mode="soft", precision="float32"),
    )
    in_double(rag.model)
    rag.index([tiny_document(LINES)])
    return rag


def slopes(rag: RAG, questions: Sequence[Question]) -> dict[str, Tensor]:
    """Per objective the gradient of the batch's mean loss in every parameter, as one vector."""
    terms = rag.terms(questions, 8, "soft")
    learning = [p for p in rag.model.parameters() if p.requires_grad]
    found = {}
    for name in NAMES:
        loss = OBJECTIVES[name](terms, Options()).mean()
        parts = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True, materialize_grads=True)
        found[name] = torch.cat([part.flatten() for part in parts])
    return found


def rank(number: int, folder: str) -> None:
    """One of two processes with half of the questions; gradients are averaged as DistributedDataParallel does."""
    rag = system()  # made before the ranks meet: from then on transformers saves from rank 0 alone
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    mine = slopes(rag, ASKED[4 * number : 4 * number + 4])
    for slope in mine.values():
        distributed.all_reduce(slope)
    if number == 0:
        save_file({name: slope / 2 for name, slope in mine.items()}, f"{folder}/slopes.safetensors")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    return slopes(system(), ASKED)


def test_two_processes_are_one_with_the_joined_batch(whole: dict[str, Tensor], tmp_path: Path) -> None:
    """Every objective, `contrastive` with the other rank's passages as negatives and gradient back to that rank."""
    multiprocessing.spawn(rank, (str(tmp_path),), nprocs=2)
    both = load_file(tmp_path / "slopes.safetensors")
    for name in NAMES:
        assert whole[name].abs().max() > 1e-6
        torch.testing.assert_close(
            both[name], whole[name], atol=1e-9, rtol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_eight_steps_of_one_question_are_one_of_eight(whole: dict[str, Tensor]) -> None:
    """Accumulated gradients of 8 × 1 are those of 1 × 8 (all but `contrastive`, which lives off its batch)."""
    rag = system()
    alone = [slopes(rag, [question]) for question in ASKED]
    for name in NAMES:
        mean = torch.stack([one[name] for one in alone]).mean(0)
        if name == "contrastive":
            assert not mean.any()
        else:
            torch.testing.assert_close(mean, whole[name], atol=1e-9, rtol=1e-6)


def test_terms_of_tokens_sum_to_the_answers() -> None:
    """log p of an answer is its tokens'; lengths count the end token; vectors give the scores of what was found."""
    terms = system().terms(ASKED[:3], 4, "soft")
    torch.testing.assert_close(terms.token_logp.sum(2), terms.answer_logp)
    for i, length in enumerate(terms.length.tolist()):
        assert (terms.token_logp[i, :, :length] < 0).all()
        assert not terms.token_logp[i, :, length:].any()
    scores = (terms.passage_rows @ terms.question_rows[:, :, None])[:, :, 0]
    torch.testing.assert_close(scores.log_softmax(1), terms.prior_logp.log_softmax(1))
