"""`benchmarks/step.py`: what our step is compared with computes what ours computes."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
import step
from step import bare_step, hold_all, our_step, questions, system, tokens_of, utilisation

from e2erag import RAG
from e2erag.extract.attention import NAME
from e2erag.testing import ReaderKind
from e2erag.train import marginal


def small(reader: ReaderKind, monkeypatch: pytest.MonkeyPatch) -> RAG:
    monkeypatch.setattr(step, "DIM", 32)
    monkeypatch.setattr(step, "LAYERS", 1)
    return system(reader, 12, 4)


@pytest.mark.parametrize("reader", ["llama", "t5"])
def test_the_bare_parts_learn_what_our_step_teaches(reader: ReaderKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going back reaches the same weights, and the reader attends as before afterwards."""
    rag = small(reader, monkeypatch)
    hold_all(rag)
    asked = questions(2)
    our_step(rag, asked, 4, marginal, 0.0)
    stages = [rag.model.retriever, rag.model.generator]
    ours = [{n for n, p in stage.named_parameters() if p.grad is not None and p.grad.any()} for stage in stages]
    bare_step(rag, asked, 4)()
    for stage, learned in zip(stages, ours, strict=True):
        assert {name for name, p in stage.named_parameters() if p.grad is not None} >= learned > set()
    assert rag.model.generator.model.config._attn_implementation == NAME
    assert tokens_of(rag, asked, 4) > 0


def test_the_devices_figures_are_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = utilisation(small("llama", monkeypatch), questions(2), 4, 1)
    assert figures["tokens_per_second"] > 0
    for name, most in (("padding_share", 0.1), ("model_flops_utilisation", 1.0), ("attention_share", 1.0)):
        assert 0 < figures[name] < most, name


@pytest.mark.skipif(not find_spec("datasets"), reason="datasets isn't installed: pip install 'e2erag[benchmarks]'")
def test_hugging_faces_loss_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is timed, for the passages that its own retriever finds; and its context encoder has a gradient."""
    rag = small("t5", monkeypatch)
    asked = questions(2)
    model, batch = step.hugging_face(rag, 4, asked)
    with torch.no_grad():
        vectors = model.rag.question_encoder(batch["input_ids"], batch["attention_mask"]).pooler_output
        found = model.retriever(batch["input_ids"], vectors.numpy(), n_docs=4, return_tensors="pt")["doc_ids"]
        ours = rag.terms(asked, 4, "soft").ids
    assert torch.equal(found, ours)
    figures = step.alike(model, rag, asked, batch, 4)
    assert figures["difference"] < 1e-4
    assert figures["loss"] == pytest.approx(figures["loss_hf_rag"], abs=1e-4)
    assert figures["cosine"] > 0.99
    step.hf_step(model, rag, batch)
    assert any(p.grad is not None and p.grad.any() for p in model.rag.ctx_encoder.parameters())
