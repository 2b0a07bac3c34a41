"""Encoders of many architectures: gates of one are the plain model, or the model is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    FNetConfig,
    Gemma2Config,
    LongformerConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    Starcoder2Config,
    T5Config,
)

from e2erag.extract import CLOSED
from e2erag.extract.attention import NAME
from e2erag.retriever import Encoder, Retriever, RetrieverConfig
from e2erag.testing import tiny_encoder

LINES = ["the pilot was 85 years", "engine maker lycoming"]


def encoder_of(config: PretrainedConfig, tmp_path: Path, pooling: str = "mean") -> Encoder:
    """Random weights of any architecture behind the tiny tokenizer."""
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tiny_encoder().tokenizer.save_pretrained(tmp_path)
    parts = [Transformer(str(tmp_path), max_seq_length=64), Pooling(32, pooling)]
    return Encoder(SentenceTransformer(modules=parts, device="cpu").eval())


SMALL = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        RobertaConfig(**SMALL),
        MPNetConfig(**SMALL),
        ElectraConfig(**SMALL, embedding_size=32),
        AlbertConfig(**SMALL, embedding_size=16),
        DistilBertConfig(vocab_size=300, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=128),
        Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
        MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=64),  # as far as texts go
        ModernBertConfig(**SMALL, local_attention=128),
        T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0),
    ],
    ids=lambda config: config.model_type,
)
def test_open_gates_are_the_plain_model_whatever_the_architecture(config: PretrainedConfig, tmp_path: Path) -> None:
    """A gate of one on every line changes nothing of what the model gives before it is a retriever's, through its own
    attention."""
    encoder = encoder_of(config, tmp_path)
    lines = encoder.lines(LINES)
    every = [np.arange(len(LINES))]
    plainly = encoder.encode_lines(lines, every)
    retriever = Retriever(encoder, RetrieverConfig())
    gated = retriever.encode_passages(lines, every, torch.zeros(len(LINES)), every)
    torch.testing.assert_close(gated, plainly, atol=1e-5, rtol=0)
    half = retriever.encode_passages(lines, every, torch.tensor([-3.0, 0.0]), every)
    assert (half - plainly).abs().max() > 1e-4


WINDOWED = [
    MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=3),
    ModernBertConfig(**SMALL, local_attention=6, global_attn_every_n_layers=2),
    ModernBertConfig(**SMALL, local_attention=6, global_attn_every_n_layers=1),  # no layer with a window
    *(
        kind(**SMALL, num_key_value_heads=2, sliding_window=3, use_sliding_window=True, max_window_layers=full)
        for kind in (Qwen2Config, Qwen3Config)
        for full in (0, 1)
    ),
    Qwen2Config(**SMALL, num_key_value_heads=2, sliding_window=3, use_sliding_window=False),
    Starcoder2Config(**SMALL, num_key_value_heads=2, sliding_window=3),
]


@pytest.mark.parametrize("learning", [True, False])  # in keys, and as a mask
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("config", WINDOWED, ids=lambda config: config.model_type)
def test_gates_keep_a_models_windows(config: PretrainedConfig, pooling: str, learning: bool, tmp_path: Path) -> None:
    """Gates of one are the plain model, token by token, where texts are longer than what a layer looks at; and a gate
    acts, whatever the pooling, on tokens that see it."""
    encoder = encoder_of(config, tmp_path, pooling)
    lines, every = encoder.lines(LINES), [np.arange(2), np.arange(1)]
    plainly = encoder.encode_lines(lines, every)
    retriever = Retriever(encoder, RetrieverConfig())
    gated = retriever.encode_passages(lines, every, torch.zeros(2, requires_grad=learning), every)
    torch.testing.assert_close(gated, plainly, atol=1e-5, rtol=0)
    ids = torch.arange(2, 26)[None].repeat(2, 1)
    there = torch.ones_like(ids, dtype=torch.bool)
    there[1, 20:] = False
    turned = torch.zeros(2, 24)
    turned[:, 12] = -5.0
    turned.requires_grad_(learning)
    states = encoder._hidden(ids, there, torch.zeros(2, 24, requires_grad=learning))
    torch.testing.assert_close(states[there], encoder._hidden(ids, there)[there], atol=1e-5, rtol=0)
    moved = encoder._hidden(ids, there, turned) - states
    assert not learning or torch.autograd.grad(moved[there].square().sum(), turned)[0].isfinite().all()
    sees = moved[0].abs().amax(1) > 1e-6
    assert sees[12]
    assert not (encoder.causal and sees[:12].any())
    reach = 4 if not encoder.causal else 3  # tokens beside it that its window holds, plus one; two layers reach twice
    if "full_attention" not in (getattr(config, "layer_types", None) or [config.model_type]):
        assert not sees[12 + 2 * reach :].any()


def test_an_encoder_by_itself_keeps_its_windows_under_gates_too(tmp_path: Path) -> None:
    """No retriever has looked at it, and the first gates come under autocast, whose rounding is no other attention."""
    encoder = encoder_of(ModernBertConfig(**SMALL, local_attention=6, global_attn_every_n_layers=2), tmp_path)
    lines, every = encoder.lines(LINES), [np.arange(2)]
    with torch.autocast("cpu", torch.bfloat16):
        encoder.encode_lines(lines, every, torch.zeros(2), every)
    assert encoder.takes_keys
    plainly = encoder.encode_lines(lines, every)
    torch.testing.assert_close(encoder.encode_lines(lines, every, torch.zeros(2), every), plainly, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        RobertaConfig(**SMALL),
        ElectraConfig(**SMALL, embedding_size=32),
        DistilBertConfig(vocab_size=300, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=128),
        Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
        MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=64),
    ],
    ids=lambda config: config.model_type,
)
def test_gates_in_keys_and_gates_in_a_mask_are_the_same(config: PretrainedConfig, tmp_path: Path) -> None:
    """Vectors and the gates' slopes, with lines turned down, one shut, and rows padded; and vectors without slopes."""
    encoder = encoder_of(config, tmp_path)
    encoder.take_gates()
    lines, every = encoder.lines(LINES), [np.arange(2), np.arange(1)]
    gates = torch.tensor([-0.7, CLOSED], requires_grad=True)
    made = []
    for keys in (True, False):
        assert encoder.takes_keys or not keys
        encoder.takes_keys = keys
        vectors = encoder.encode_lines(lines, every, gates, every)
        made.append((vectors, *torch.autograd.grad(vectors.square().sum(), gates)))
    for keys, mask in zip(*made, strict=True):
        torch.testing.assert_close(keys, mask, atol=1e-5, rtol=1e-4)
    encoder.takes_keys = True
    torch.testing.assert_close(encoder.encode_lines(lines, every, gates.detach(), every), made[0][0], atol=1e-5, rtol=0)
    assert made[0][1].abs().max() > 1e-3


OWN = {
    "mpnet": MPNetConfig(**SMALL),
    "t5": T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, sliding_window=64),  # softcaps
    "bert": BertConfig(**SMALL),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", OWN)
def test_a_model_whose_attention_takes_no_keys_gets_a_mask(
    kind: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention of its own, softcaps that a fused kernel leaves out, and arguments that it keeps to itself: what the
    model computes with stays, and so do the modes of its modules."""
    if kind == "bert":
        forward = BertModel.forward
        monkeypatch.setattr(BertModel, "forward", lambda self, key_bias=None, source_bias=None, **k: forward(self, **k))
    encoder = encoder_of(OWN[kind], tmp_path)
    encoder.transformer.to(dtype).train()
    next(encoder.transformer.children()).eval()
    before, modes = encoder.transformer.config._attn_implementation, [m.training for m in encoder.transformer.modules()]
    Retriever(encoder, RetrieverConfig())
    assert not encoder.takes_keys
    assert encoder.transformer.config._attn_implementation == before
    assert [module.training for module in encoder.transformer.modules()] == modes


def test_gates_in_pooling_leave_attention_as_it_was_chosen() -> None:
    """Only gates in attention take its place, and weights that are no numbers take none."""
    encoder = tiny_encoder()
    encoder.transformer.set_attn_implementation("eager")
    Retriever(encoder, RetrieverConfig(gates="pool"))
    assert encoder.transformer.config._attn_implementation == "eager"
    Retriever(encoder, RetrieverConfig())
    assert encoder.transformer.config._attn_implementation == NAME
    broken = tiny_encoder()
    broken.transformer.embeddings.word_embeddings.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="no mask of gates reaches it"):
        Retriever(broken, RetrieverConfig())


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=32),
        DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16),
        LongformerConfig(**SMALL, attention_window=8),
        FNetConfig(**{name: value for name, value in SMALL.items() if name != "num_attention_heads"}),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_with_attention_of_its_own_pools_by_gates_or_is_refused(
    config: PretrainedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask of gates would take it away, or do nothing: windows, of a model that doesn't take keys, disentangled and
    sparse attention, and none."""
    encoder = encoder_of(config, tmp_path)
    monkeypatch.setattr(type(encoder.transformer), "_supports_attention_backend", False)
    with pytest.raises(ValueError, match=r"has attention of its own .*: use RetrieverConfig\(gates=\"pool\"\)"):
        Retriever(encoder, RetrieverConfig())
    retriever = Retriever(encoder, RetrieverConfig(gates="pool"))
    lines, every = retriever.passage.lines(LINES), [np.arange(len(LINES))]
    gated = retriever.encode_passages(lines, every, torch.zeros(len(LINES)), every)
    torch.testing.assert_close(gated, retriever.encode_passages(lines, every), atol=1e-5, rtol=0)


def test_a_model_that_no_gate_reaches_has_them_in_hard_mode_alone(tmp_path: Path) -> None:
    """DeBERTa, pooled by CLS: the refusal names the way out, with which a line that is turned down changes nothing."""
    config = DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16)
    encoder = encoder_of(config, tmp_path, "cls")
    with pytest.raises(
        ValueError, match=r"has attention of its own .*: use RetrieverConfig\(gates=\"hard\"\), or another"
    ):
        Retriever(encoder, RetrieverConfig())
    retriever = Retriever(encoder, RetrieverConfig(gates="hard"))
    lines, every = encoder.lines(LINES), [np.arange(2)]
    gated = retriever.encode_passages(lines, every, torch.tensor([CLOSED, 0.0]), every)
    assert torch.equal(gated, retriever.encode_passages(lines, every))
