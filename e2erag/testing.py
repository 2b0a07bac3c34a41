"""Tiny random models of the real architectures, for tests (ours and yours) that need no weights.

A BERT behind sentence-transformers, a Llama, their tokenizers trained on the spot, and documents made of lines.
They know nothing; everything about shapes, gates, gradients, saving and loading holds for them all the same.
"""

import tempfile
from collections.abc import Iterable, Sequence
from hashlib import sha256

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from e2erag.extract import Box, Document, Extractor, ExtractorConfig, Page, Unit
from e2erag.generator import Generator, GeneratorConfig
from e2erag.rag import RAG, RAGConfig
from e2erag.retriever import Encoder, Retriever, RetrieverConfig

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


def tiny_generator(seed: int = 0, dim: int = 32, layers: int = 2, config: GeneratorConfig | None = None) -> Generator:
    """A Llama of random weights with a byte-level BPE tokenizer and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|start|>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", chat_template=CHAT, model_max_length=512
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast), hidden_size=dim, intermediate_size=2 * dim, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
            bos_token_id=None, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    return Generator(model.eval(), fast, config or GeneratorConfig(max_tokens=256, max_new_tokens=8))


def tiny_rag(
    seed: int = 0,
    extractor: ExtractorConfig | None = None,
    retriever: RetrieverConfig | None = None,
    config: RAGConfig | None = None,
) -> RAG:
    """A whole system of tiny models, in float32 whatever the processor has."""
    encoder = tiny_encoder(seed)
    torch.manual_seed(seed)
    return RAG(
        Extractor(extractor or ExtractorConfig(text_dim=encoder.dim, hidden=16, sizes=(2, 4), identity_lines=1)),
        Retriever(encoder, retriever or RetrieverConfig(temperature=0.2)),
        tiny_generator(seed),
        config or RAGConfig(k=3, precision="float32"),
    )
