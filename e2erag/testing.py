"""Tiny random models of the real architectures, for tests (ours and yours) that need no weights.

A BERT behind sentence-transformers; a Llama, T5 or BART; their tokenizers trained on the spot; documents made of lines.
They know nothing; everything about shapes, gates, gradients, saving and loading holds for them all the same.
"""

import tempfile
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from e2erag.config import RAGConfig
from e2erag.extract import Box, Document, Extractor, ExtractorConfig, Page, Unit
from e2erag.generator import Generator, GeneratorConfig
from e2erag.rag import RAG
from e2erag.retriever import Encoder, Retriever, RetrieverConfig

ReaderKind = Literal["llama", "t5", "bart"]

WORDS = """
the pilot of aircraft was a tailwheel engine model maker lycoming continental age years page report accident number
registration landing gear seats weight medical exam probable cause substantial damage injuries none minor how old who
made what when did happen where date location question answer with short span copied from text no sentence
explanation 1 2 3 4 5 6 7 8 9 0 . ? : , -
""".split()

CHAT = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tiny_document(pages: Iterable[Sequence[str]], file: str = "tiny.pdf") -> Document:
    """A document with the given lines on each page, set 12 points apart."""
    made = []
    for number, lines in enumerate(pages, 1):
        units = tuple(
            Unit(text, number, i + 1, Box(50.0, 50.0 + 12 * i, 50.0 + 5 * len(text), 60.0 + 12 * i), 10.0)
            for i, text in enumerate(lines)
        )
        made.append(Page(number, 612.0, 792.0, units))
    return Document(file, sha256(repr(made).encode()).hexdigest(), tuple(made))


def tiny_encoder(seed: int = 0, dim: int = 32, pooling: str = "mean", layers: int = 2) -> Encoder:
    """A BERT of random weights with a WordPiece tokenizer that falls back to characters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = list(dict.fromkeys([*special, *WORDS, *letters, *("##" + c for c in letters)]))
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=128,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=dim, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=2 * dim, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        fast.save_pretrained(folder)
        parts = [Transformer(folder, max_seq_length=128), Pooling(dim, pooling), Normalize()]
    return Encoder(SentenceTransformer(modules=parts, device="cpu").eval())


def tiny_generator(
    seed: int = 0, dim: int = 32, layers: int = 2, config: GeneratorConfig | None = None, kind: ReaderKind = "llama"
) -> Generator:
    """A Llama, T5 or BART of random weights with a byte-level BPE tokenizer (for the Llama with a chat template)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|start|>", "<|end|>"] if kind == "llama" else ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    if kind != "llama":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>" if kind == "t5" else "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    names = (
        {"eos_token": "<|end|>", "pad_token": "<|end|>", "chat_template": CHAT}
        if kind == "llama"
        else {"eos_token": "</s>", "pad_token": "<pad>"}
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)
    torch.manual_seed(seed)
    model = _tiny_language_model(kind, len(fast), dim, layers, fast.eos_token_id, fast.pad_token_id)
    if kind != "llama":
        model.generation_config.decoder_start_token_id = fast.pad_token_id if kind == "t5" else fast.eos_token_id
    return Generator(model.eval(), fast, config or GeneratorConfig(max_tokens=256, max_new_tokens=8))


def _tiny_language_model(kind: ReaderKind, words: int, dim: int, layers: int, eos: int, pad: int) -> PreTrainedModel:
    if kind == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=words, hidden_size=dim, intermediate_size=2 * dim, num_hidden_layers=layers,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
                bos_token_id=None, eos_token_id=eos, pad_token_id=pad, tie_word_embeddings=True,
            )
        )  # fmt: skip
    if kind == "t5":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=words, d_model=dim, d_ff=2 * dim, d_kv=dim // 4, num_layers=layers, num_heads=4,
                eos_token_id=eos, pad_token_id=pad,
            )
        )  # fmt: skip
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=words, d_model=dim, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=2 * dim, decoder_ffn_dim=2 * dim, max_position_embeddings=512,
            init_std=0.2, bos_token_id=1, eos_token_id=eos, pad_token_id=pad,
            forced_eos_token_id=None,
        )
    )  # fmt: skip


def tiny_rag(
    seed: int = 0,
    extractor: ExtractorConfig | None = None,
    retriever: RetrieverConfig | None = None,
    config: RAGConfig | None = None,
    reader: ReaderKind = "llama",
) -> RAG:
    """A whole system of tiny models, in float32 whatever the processor has."""
    encoder = tiny_encoder(seed)
    torch.manual_seed(seed)
    return RAG(
        Extractor(extractor or ExtractorConfig(text_dim=encoder.dim, hidden=16, sizes=(2, 4), identity_lines=1)),
        Retriever(encoder, retriever or RetrieverConfig(temperature=0.2)),
        tiny_generator(seed, kind=reader),
        config or RAGConfig(k=3, precision="float32"),
    )
