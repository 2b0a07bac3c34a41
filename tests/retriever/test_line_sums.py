"""Gates that act on pooling alone: a passage is pooled anew from its lines' sums, without the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from e2erag import RAG, RAGConfig
from e2erag.retriever import Encoder, Retriever, RetrieverConfig
from e2erag.testing import tiny_document, tiny_encoder, tiny_rag

LINES = ["the pilot was 85 years", "engine maker lycoming", "seats 4", "", "page 2 of 4"]
PASSAGES = [np.array([0, 1, 2]), np.array([4]), np.array([3, 2, 4, 0]), np.array([1, 1])]
SLOTS = [np.array([0, 1, 2]), np.array([9]), np.array([3, 2, 4, 5]), np.array([6, 7])]


def kinds() -> list[Encoder]:
    """A plain model, one without Normalize, and one whose prompt isn't pooled."""
    base = tiny_encoder().model
    bare = SentenceTransformer(modules=list(base)[:2], device="cpu").eval()
    parts = [base[0], Pooling(32, "mean", include_prompt=False), base[2]]
    prompted = SentenceTransformer(modules=parts, prompts={"document": "report : "}, device="cpu").eval()
    return [Encoder(model) for model in (base, bare, prompted)]


@pytest.mark.parametrize("encoder", kinds(), ids=["normalised", "bare", "prompted"])
def test_pooling_anew_equals_encoding_afresh(encoder: Encoder) -> None:
    """Other gates, an empty line, a line that stands twice with two gates, in batches of any size: to 1e-6."""
    encoder.token_budget = 16
    lines = encoder.lines(LINES)
    sums = encoder.line_sums(lines, PASSAGES, SLOTS)
    for gates in (torch.zeros(10), -3 * torch.rand(10), torch.where(torch.arange(10) % 2 > 0, -30.0, 0.0)):
        with torch.no_grad():
            afresh = encoder.encode_lines(lines, PASSAGES, gates, SLOTS, attend=False)
        torch.testing.assert_close(sums.pool(gates), afresh, atol=1e-6, rtol=1e-6)


def test_open_gates_are_the_plain_model_and_shut_ones_leave_attention_alone() -> None:
    """Gates of one: sentence-transformers' own vector. A shut line: the mean of the other tokens' states as they are
    in the whole passage, special tokens included."""
    encoder = tiny_encoder()
    lines = encoder.lines(LINES[:2])
    sums = encoder.line_sums(lines, [np.arange(2)], [np.arange(2)])
    plain = encoder.model.encode(["\n".join(LINES[:2])], convert_to_tensor=True)
    torch.testing.assert_close(sums.pool(torch.zeros(2)), plain, atol=1e-6, rtol=0)
    states = encoder.model.encode("\n".join(LINES[:2]), output_value="token_embeddings")
    first = int(lines.sizes[0])
    kept = torch.cat([states[:1], states[1 + first :]]).mean(0)
    shut = sums.pool(torch.tensor([-30.0, 0.0]))[0]
    torch.testing.assert_close(shut, kept / kept.norm(), atol=1e-6, rtol=0)


def test_pooling_anew_has_the_gradient_that_finite_differences_confirm() -> None:
    """d(vectors)/d(log w) of stored sums, in float64."""
    encoder = tiny_encoder()
    sums = encoder.line_sums(encoder.lines(LINES), PASSAGES, SLOTS)
    sums = replace(sums, rows=sums.rows.double())
    gates = (-torch.rand(10, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(sums.pool, gates)


@pytest.mark.parametrize("pooling", ["cls", "lasttoken"])
def test_gates_in_pooling_need_mean_pooling(pooling: str) -> None:
    """Else there is nothing that a line's gate could weigh; the error says the way out."""
    with pytest.raises(
        ValueError, match=rf"this model pools by '{pooling}': use gates=\"attend\", or a model with mean"
    ):
        Retriever(tiny_encoder(pooling=pooling), RetrieverConfig(gates="pool"))


PAGES = [["accident number NYC08", "the pilot was 85", "engine maker lycoming", "seats 4"], ["page 2", "weight 2000"]]


def changed(rag: RAG) -> None:
    """Another extractor: gates that differ from line to line, some of them shut."""
    gates = rag.model.extractor.gates
    with torch.no_grad():
        torch.nn.init.normal_(gates.weight, std=4.0)
        gates.bias[:3] -= 2.0


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_changed_extractor_refreshes_the_index_without_the_model(mode: str) -> None:
    """The refreshed rows equal those encoded afresh, and the transformer hasn't run; with other weights it runs.

    In hard mode the passages depend on the gates too: it runs only where others are proposed."""
    rag = tiny_rag(
        retriever=RetrieverConfig(temperature=0.2, gates="pool"),
        config=RAGConfig(k=2, mode=mode, precision="float32"),
    )
    rag.index([tiny_document(PAGES)])
    before, spans = rag.index_.vectors.clone(), rag.corpus.spans.spans
    changed(rag)
    encoder, calls = rag.model.retriever.passage, []
    hook = encoder.transformer.register_forward_hook(lambda *_: calls.append(1))
    rag.refresh()
    same = torch.equal(rag.corpus.spans.spans, spans)
    assert same or mode == "hard"
    assert bool(calls) != same
    assert not same or (rag.index_.vectors - before).abs().max() > 1e-2
    with torch.no_grad():
        gates = rag.model.gates(rag.corpus, mode)
        every = torch.arange(len(rag.corpus.passages))
        log_prior = rag.model.log_prior(rag.corpus, gates)
        afresh = rag.model.encode(rag.corpus, every, gates, log_prior, mode)
    torch.testing.assert_close(rag.index_.vectors, afresh, atol=1e-6, rtol=1e-6)
    calls.clear()
    with torch.no_grad():
        next(encoder.transformer.parameters()).add_(0.1)
    rag.refresh()
    assert calls
    hook.remove()


def test_a_run_with_gates_in_pooling_learns_and_encodes_once_while_the_tower_is_frozen() -> None:
    """The extractor alone learns, the index is refreshed at every step: the passage tower runs over the whole corpus
    once, at the start; afterwards only over the passages that a step reads."""
    rag = tiny_rag(retriever=RetrieverConfig(temperature=0.2, gates="pool"))
    rag.index([tiny_document(PAGES)])
    whole: list[int] = []
    sums = rag.model.line_sums
    rag.model.line_sums = lambda *a: (whole.append(1), sums(*a))[1]
    rows = [{"question": "how old was the pilot ?", "answers": ["85"]}] * 4
    before = rag.model.extractor.gates.weight.clone()
    rag.fit(rows, epochs=1, batch_size=1, k=1, refresh_every=1, progress=False, freeze=("retriever", "generator"))
    assert not torch.equal(rag.model.extractor.gates.weight, before)
    assert len(whole) <= 1
