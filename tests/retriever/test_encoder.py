"""The gated encoder against plain sentence-transformers."""

import tempfile

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

from e2erag.extract import CLOSED
from e2erag.retriever import Encoder, Retriever, RetrieverConfig
from e2erag.testing import tiny_encoder

LINES = ["the pilot was 85 years", "engine maker lycoming", "seats 4", "page 2 of 4"]


def rows(encoder: Encoder, which: list[int], log_gates: list[float] | None = None) -> torch.Tensor:
    """The passage made of these lines, with a gate per line."""
    passage = np.array(which)
    gates = None if log_gates is None else torch.tensor(log_gates)
    return encoder.encode_lines(encoder.lines(LINES), [passage], gates, [np.arange(len(which))])[0]


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_gates_of_one_are_plain_sentence_transformers(pooling: str) -> None:
    """Without gates bit for bit, with gates of log w = 0 to rounding, whatever the pooling."""
    encoder = tiny_encoder(pooling=pooling)
    plain = encoder.model.encode(["\n".join(LINES[:2])], convert_to_tensor=True)[0]
    assert torch.equal(rows(encoder, [0, 1]), plain)
    torch.testing.assert_close(rows(encoder, [0, 1], [0.0, 0.0]), plain, atol=1e-6, rtol=0)


def test_questions_are_plain_sentence_transformers_in_any_batch() -> None:
    """Three questions of different lengths, encoded together by length, in the order given."""
    encoder = tiny_encoder()
    questions = ["how old was the pilot ?", "seats", "who made the engine of the aircraft in the accident ?"]
    plain = encoder.model.encode(questions, convert_to_tensor=True, batch_size=1)
    torch.testing.assert_close(encoder.encode_text(questions), plain, atol=1e-6, rtol=0)
    encoder.token_budget = 8  # every row alone
    torch.testing.assert_close(encoder.encode_text(questions), plain, atol=1e-6, rtol=0)


def test_a_gate_of_zero_at_the_end_equals_deletion() -> None:
    """The last line shut: nothing but [SEP] follows, whose position moves by the line's length; with the same
    positions the vectors are equal."""
    encoder = tiny_encoder()
    lines = encoder.lines(LINES)
    tokens, owner = lines.gather(np.array([0, 1]))
    cls, sep = 2, 3
    full = torch.tensor([[cls, *tokens, sep]])
    gates = torch.tensor([[0.0, *np.where(owner == 1, CLOSED, 0.0), 0.0]], dtype=torch.float32)
    short = torch.tensor([[cls, *tokens[owner == 0], sep]])
    position = torch.tensor([[*range(1 + int((owner == 0).sum())), full.shape[1] - 1]])
    shut = encoder.embed(full, torch.ones_like(full, dtype=torch.bool), gates)
    gone = encoder.embed(short, torch.ones_like(short, dtype=torch.bool), position_ids=position)
    torch.testing.assert_close(shut, gone, atol=1e-6, rtol=0)


def test_a_gate_of_zero_in_the_middle_equals_deletion_but_for_position_numbers() -> None:
    """A line in the middle shut: equal to the text without it as soon as what follows keeps its position numbers."""
    encoder = tiny_encoder()
    tokens, owner = encoder.lines(LINES).gather(np.array([0, 1, 2]))
    full = torch.tensor([[2, *tokens, 3]])
    gates = torch.tensor([[0.0, *np.where(owner == 1, CLOSED, 0.0), 0.0]], dtype=torch.float32)
    keep = torch.tensor([True, *(owner != 1), True])
    shut = encoder.embed(full, torch.ones_like(full, dtype=torch.bool), gates)
    gone = encoder.embed(full[:, keep], keep[None, keep], position_ids=torch.arange(len(keep))[None, keep])
    torch.testing.assert_close(shut, gone, atol=1e-6, rtol=0)


def test_a_gate_moves_the_embedding_with_a_gradient_that_finite_differences_confirm() -> None:
    """d(embedding)/d(log w) in float64, through attention and pooling."""
    encoder = tiny_encoder().double()
    passage, slots = [np.array([0, 1, 2])], [np.arange(3)]
    lines = encoder.lines(LINES)
    gates = torch.tensor([-0.1, -1.0, -3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: encoder.encode_lines(lines, passage, g, slots)[0, :4], gates, atol=1e-5)


def test_a_batch_row_equals_a_batch_of_one() -> None:
    """Passages of one to four lines, with gates, together and alone."""
    encoder = tiny_encoder()
    lines, gates = encoder.lines(LINES), torch.tensor([-0.5, -1.0, -2.0, -0.1])
    passages = [np.array([0]), np.array([0, 1, 2, 3]), np.array([3, 1])]
    together = encoder.encode_lines(lines, passages, gates, passages)
    for row, passage in zip(together, passages, strict=True):
        torch.testing.assert_close(encoder.encode_lines(lines, [passage], gates, [passage])[0], row, atol=1e-5, rtol=0)


def test_a_causal_encoder_stays_causal_under_gates() -> None:
    """A Llama with last-token pooling: gates of one give the plain model's vector."""
    from e2erag.testing import tiny_generator

    reader = tiny_generator()
    with tempfile.TemporaryDirectory() as folder:
        reader.model.model.save_pretrained(folder)
        reader.tokenizer.save_pretrained(folder)
        parts = [Transformer(folder, max_seq_length=128), Pooling(32, "lasttoken")]
    encoder = Encoder(SentenceTransformer(modules=parts, device="cpu").eval())
    assert encoder.causal
    plain = rows(encoder, [0, 1])
    torch.testing.assert_close(rows(encoder, [0, 1], [0.0, 0.0]), plain, atol=1e-5, rtol=0)
    assert not tiny_encoder().causal


def test_a_long_passage_is_cut_and_keeps_its_special_tokens() -> None:
    """200 lines into a model of 128 tokens: the same as the text that fits."""
    encoder = tiny_encoder()
    lines = encoder.lines(["seats 4"] * 200)
    vector = encoder.encode_lines(lines, [np.arange(200)])[0]
    plain = encoder.model.encode(["\n".join(["seats 4"] * 63)], convert_to_tensor=True)[0]
    torch.testing.assert_close(vector, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("named", ["before pooling", "token_embeddings", "two poolings"])
def test_a_model_that_is_not_transformer_and_pooling_is_refused(named: str) -> None:
    """What acts on tokens would be skipped silently, so it is an error that names what came."""
    transformer, pooling, *_ = tiny_encoder().model
    of_tokens = Dense(32, 16, module_input_name="token_embeddings")
    parts, came = {
        "before pooling": ([transformer, Dense(32, 32), pooling], "Transformer → Dense → Pooling"),
        "token_embeddings": ([transformer, pooling, of_tokens], "Transformer → Pooling → Dense"),
        "two poolings": ([transformer, pooling, Pooling(32)], "Transformer → Pooling → Pooling"),
    }[named]
    with pytest.raises(ValueError, match=f"that change the sentence's vector; this one is {came}"):
        Encoder(SentenceTransformer(modules=parts, device="cpu"))


def test_tied_towers_are_one_and_untied_towers_are_two() -> None:
    """Untied towers start equal, share no parameter, and a step on one leaves the other alone."""
    tied = Retriever(tiny_encoder())
    assert tied.query is tied.passage
    untied = Retriever(tiny_encoder(), RetrieverConfig(tied=False))
    shared = {id(p) for p in untied.query.parameters()} & {id(p) for p in untied.passage.parameters()}
    assert not shared
    before = untied.passage.encode_text(["the pilot"])
    torch.testing.assert_close(untied.query.encode_text(["the pilot"]), before)
    with torch.no_grad():
        next(untied.query.transformer.parameters()).add_(1.0)
    assert torch.equal(untied.passage.encode_text(["the pilot"]), before)


def test_line_features_are_mean_word_embeddings() -> None:
    """The look-up that the extractor reads, against the table."""
    encoder = tiny_encoder()
    table = encoder.transformer.get_input_embeddings().weight
    ids = encoder.tokenizer("seats 4", add_special_tokens=False)["input_ids"]
    features = encoder.line_features(encoder.lines(LINES))
    torch.testing.assert_close(features[2], table[ids].mean(0))
