"""What a training step costs: against the sum of its bare parts, and against Hugging Face's RAG.

    python benchmarks/step.py [--quick] [--device DEVICE] [--json FILE]

Random weights (4 layers of width 256 in encoder and readers), made-up passages as long as SQuAD's paragraphs, float32,
all in one run, step after step in turn, so that the ratios hold on any machine:

- over_bare: our step (forward and backward, every row with gradient) / the same padded tokens through the encoder and
  the language model as transformers has them, with its head at the answers' tokens only; both hold all activations.
  The bar is 1.15.
- over_hf_rag: questions per second of our step over those of `RagSequenceForGeneration` with its context encoder
  training; same encoders, same T5, same passages, prompts, batch and K, which is 10 (over_hf_rag_k5: 5), its own
  (sdpa) attention, no dropout in either. The bar is 2. Beside it the same with every row read with gradient (by default
  what has less than 2 % of the likelihood is not). Hugging Face's rows all have one length, the shortest that cuts no
  passage of the corpus. loss, loss_hf_rag, difference: of the arms that are timed, on the batch that they are timed on;
  cosine: of our gradient to that with every row.
- peak_over_hf_rag: what a step adds to the resident memory, each in a process of its own.
- *_k_grown, *_corpus_grown: seconds and peak of a step that reads every row with gradient, at 4 times that K, and with
  16 times the passages, over its own (left out by --quick). How much is left out by default depends on how alike the
  passages found are, and that on the corpus' size.
- tokens_per_second: tokens, padding left out, of passages, questions and prompts that a step of ours with a Llama takes
  through encoder and reader; padding_share: of what these are given; model_flops_utilisation: floating-point operations
  of its matrix products (forward and backward, attention's whole squares and padding too; torch's FlopCounterMode) per
  second, over those of one large product in the same precision; attention_share: of the time in torch's operations (on
  a GPU of its kernels) what the attention kernels take.

With --device cuda all of it is measured there, in the precision that "auto" has there, and the peak is of the memory
that torch has given out; that has not been run yet, on any GPU.
Hugging Face's part needs `pip install e2erag[benchmarks]`, and is left out without.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from rounds import interleaved, over, seconds
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from e2erag.artefact import write_file
from e2erag.config import RAGConfig
from e2erag.extract import Document, Extractor, ExtractorConfig
from e2erag.extract.attention import NAME
from e2erag.generator import GeneratorConfig
from e2erag.generator.prompt import SYSTEM
from e2erag.joint import Joint
from e2erag.questions import Question
from e2erag.rag import RAG
from e2erag.retriever import Encoder, Retriever, RetrieverConfig
from e2erag.testing import WORDS, ReaderKind, tiny_document, tiny_encoder, tiny_generator
from e2erag.train import FitConfig, marginal, rag_sequence
from e2erag.train.objectives import negligible

DIM, LAYERS, BATCH, K, PASSAGES = 256, 4, 4, 4, 128
FEW, MANY = 5, 10
"""K against Hugging Face's RAG, which reads 5 by default; Lewis et al. (2020) train with 5 or 10."""
LENGTHS = (30, 103, 124, 155, 197, 254), (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
"""Tokens of the paragraphs of SQuAD's development set for SmolLM2, and the share of them that have fewer; the longest
tenth is cut there, as candidates for an encoder of 256 tokens are."""


def pages(count: int, tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """A page for each passage, in lines of six words, with as many tokens as paragraphs of SQuAD have."""
    draw = random.Random(0)
    words = [draw.choices(WORDS, k=254) for _ in range(count)]
    made = []
    for passage, ids in zip(words, tokenizer([" ".join(passage) for passage in words])["input_ids"], strict=True):
        wanted = np.interp(draw.random(), *reversed(LENGTHS))
        passage = passage[: round(wanted * len(passage) / len(ids))]
        made.append([" ".join(passage[i : i + 6]) for i in range(0, len(passage), 6)])
    return [tiny_document([lines], f"{i}.pdf") for i, lines in enumerate(made)]


def questions(count: int) -> list[Question]:
    draw = random.Random(1)
    return [
        Question(" ".join(draw.choices(WORDS, k=8)) + " ?", (" ".join(draw.choices(WORDS, k=draw.randint(1, 4))),))
        for _ in range(count)
    ]


def system(reader: ReaderKind, passages: int, k: int, device: str = "cpu") -> RAG:
    """Two towers without a last normalisation and τ = 1, as Hugging Face's RAG has them; float32 on a CPU."""
    encoder = tiny_encoder(dim=DIM, layers=LAYERS, pooling="cls")
    bare = SentenceTransformer(modules=list(encoder.model)[:2], device="cpu", similarity_fn_name="dot")
    encoder = Encoder(bare.eval())
    generator = tiny_generator(dim=DIM, layers=LAYERS, config=GeneratorConfig(max_tokens=512), kind=reader)
    torch.manual_seed(0)
    rag = RAG(
        Extractor(ExtractorConfig(text_dim=DIM, sizes=(100,), kinds=(), identity_lines=0)),
        Retriever(encoder, RetrieverConfig(temperature=1.0, tied=False)),
        generator,
        RAGConfig(k=k, precision="float32" if device == "cpu" else "auto", mode="soft"),
    ).to(device)
    rag.index(pages(passages, generator.tokenizer))
    return rag


def our_losses(rag: RAG, asked: list[Question], k: int, objective: Callable[..., Tensor], share: float) -> Tensor:
    """Of one step, as `fit` takes it, per question."""
    share, tail = negligible((objective.__name__,), share)
    return objective(rag.terms(asked, k, "soft", negligible=share, tail=tail, judged=FitConfig().judged))


def our_step(rag: RAG, asked: list[Question], k: int, objective: Callable[..., Tensor], share: float) -> Tensor:
    """The same, with its gradient."""
    rag.model.zero_grad(set_to_none=True)
    losses = our_losses(rag, asked, k, objective, share)
    losses.mean().backward()
    return losses.detach()


def hold_all(rag: RAG) -> None:
    """Nothing is computed twice to bound memory."""
    rag.model.generator.config = replace(rag.model.generator.config, held_tokens=10**9)


# ------------------------------------------------------------------------------------------------------- bare parts


def bare_step(rag: RAG, asked: list[Question], k: int) -> Callable[[], None]:
    """The transformer calls of one of our steps, replayed on their own with transformers' own attention."""
    model, reader = rag.model, rag.model.generator.model
    calls: list[tuple[str, nn.Module, dict[str, Any]]] = []

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        plain = {key: value for key, value in kwargs.items() if key not in ("key_bias", "source_bias")}
        calls.append((name, module, plain if kwargs else {"tokens": len(args[0])}))

    parts = {
        "query": model.retriever.query.transformer,
        "passage": model.retriever.passage.transformer,
        "encoder": reader.get_encoder() if reader.config.is_encoder_decoder else None,
        "decoder": reader.get_decoder(),
        "head": reader.get_output_embeddings(),
    }
    hooks = [m.register_forward_pre_hook(partial(note, n), with_kwargs=True) for n, m in parts.items() if m is not None]
    our_losses(rag, asked, k, marginal, 0.0)  # forward alone: what is computed a second time going back is ours
    for hook in hooks:
        hook.remove()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        reader.set_attn_implementation("sdpa")
        total, source, hidden = torch.zeros((), device=model.device), None, torch.zeros(())
        with model.autocast():
            for name, module, how in calls:
                if name == "head":
                    total = total + module(hidden.flatten(0, 1)[: how["tokens"]]).float().logsumexp(-1).mean()
                    continue
                given = how | ({"encoder_hidden_states": source} if "encoder_hidden_states" in how else {})
                hidden = module(**given).last_hidden_state
                if name in ("query", "passage"):
                    total = total + hidden[:, 0].mean()
                source = hidden if name == "encoder" else source
        total.backward()
        reader.set_attn_implementation(NAME)

    return step


# ------------------------------------------------------------------------------------------------------- the device


def utilisation(rag: RAG, asked: list[Question], k: int, rounds: int) -> dict[str, float]:
    """What a step makes of the device: tokens and operations per second, and what attention takes of its time."""
    model, device = rag.model, rag.model.device
    hold_all(rag)
    step = partial(our_step, rag, asked, k, marginal, 0.0)
    tokens, given = tokens_of(rag, asked, k), []
    parts = model.retriever.query.transformer, model.retriever.passage.transformer, model.generator.model.get_decoder()
    hooks = [
        part.register_forward_pre_hook(lambda _, args, kw: given.append(kw["input_ids"].numel()), with_kwargs=True)
        for part in parts
    ]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # whose products are all counted
        step()
    for hook in hooks:
        hook.remove()
    product, operations = square(model)
    times = interleaved({"step": step, "product": product}, rounds)
    with profile() as seen:
        seconds(step)
    return {
        "tokens_per_second": tokens / median(times["step"]),
        "padding_share": 1 - tokens / sum(given),
        "model_flops_utilisation": counter.get_total_flops() / operations * over(times, "product", "step"),
        "attention_share": attention_share(seen, device),
    }


@torch.no_grad()
def tokens_of(rag: RAG, asked: list[Question], k: int) -> int:
    """Of the questions and passages that a step encodes, and of the rows that it reads; without padding."""
    model, texts = rag.model, [q.question for q in asked]
    terms = rag.terms(asked, k, "soft")
    rows, _ = model.rows(rag.corpus, texts, [q.answers[0] for q in asked], terms.ids, terms.gates, "soft")
    read = sum(len(row.ids) for row in rows)
    encoder, lines = model.retriever.passage, rag.corpus.retriever_lines
    passages, _ = model.gated_lines(rag.corpus, terms.ids[terms.ids >= 0].unique(), terms.gates)
    special = encoder.max_tokens - encoder.room
    encoded = sum(min(int(lines.sizes[each].sum()), encoder.room) + special for each in passages)
    return read + encoded + sum(map(len, encoder.tokenizer(texts)["input_ids"]))


def attention_share(seen: profile, device: torch.device) -> float:
    """Of the time of all operations, that in attention: forward, and backward of fused kernels."""
    kind, events = "device" if device.type == "cuda" else "cpu", seen.key_averages()
    names = [e for e in events if e.key.startswith("aten::_scaled_dot_product") and e.key.endswith("_backward")]
    names += [e for e in events if e.key == "aten::scaled_dot_product_attention"]
    inside = sum(getattr(e, f"{kind}_time_total") for e in names)
    if kind == "device":  # a kernel is an event of its own, and counts for the operation that launched it once more
        events = [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    return float(inside / sum(getattr(e, f"self_{kind}_time_total") for e in events))


def square(model: Joint) -> tuple[Callable[[], object], int]:
    """The product of two square matrices, in the precision in which the model computes and large enough that what a
    call costs doesn't show; and its operations."""
    size = 8192 if model.device.type == "cuda" else 2048
    a = torch.rand(size, size, device=model.device)
    with torch.no_grad(), model.autocast():
        dtype = (a[:8, :8] @ a[:8, :8]).dtype
    a = a.to(dtype)
    return partial(torch.mm, a, a), 2 * size**3


# ------------------------------------------------------------------------------------------------ Hugging Face's RAG


def hugging_face(rag: RAG, k: int, asked: list[Question]) -> tuple[Any, dict[str, Tensor]]:
    """`RagSequenceForGeneration` over the same weights and passages, and a batch for it.

    Its retriever searches and joins texts as it does, and then gives our prompts' tokens for its own: ours are
    tokenised in pieces, which may split a blank off, and end with what no question ends with. A passage's title, which
    is empty here, would be a separator more to its context encoder."""
    import faiss
    from datasets import Dataset, disable_progress_bars
    from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder, RagConfig, RagRetriever
    from transformers import RagSequenceForGeneration as RagSequence
    from transformers.models.rag.retrieval_rag import CustomHFIndex

    disable_progress_bars()
    bert, reader = rag.model.retriever.passage.transformer, deepcopy(rag.model.generator.model)
    reader.set_attn_implementation("sdpa")
    towers = [
        kind(DPRConfig(**bert.config.to_diff_dict(), projection_dim=0))
        for kind in (DPRQuestionEncoder, DPRContextEncoder)
    ]
    for tower, own in zip(towers, (rag.model.retriever.query, rag.model.retriever.passage), strict=True):
        (inner,) = [module for module in tower.modules() if type(module).__name__ == "BertModel"]
        weights = {name: value for name, value in own.transformer.state_dict().items() if "pooler" not in name}
        inner.load_state_dict(weights)
    texts = [passage.text for passage in rag.corpus.passages]
    data = Dataset.from_dict(
        {"title": [""] * len(texts), "text": texts, "embeddings": rag.index_.vectors[:, :DIM].tolist()}
    )
    data.add_faiss_index("embeddings", metric_type=faiss.METRIC_INNER_PRODUCT)
    tokenizer, words = rag.model.generator.tokenizer, rag.model.retriever.passage.tokenizer
    every = torch.arange(len(texts)).expand(len(asked), -1)
    config = RagConfig.from_question_encoder_generator_configs(
        towers[0].config, reader.config, n_docs=k, title_sep=f"{SYSTEM}\n\n", doc_sep="\n\nQuestion: ",
        retrieval_vector_size=DIM, max_combined_length=prompts(rag, asked, every).shape[1],
    )  # fmt: skip

    class SamePrompts(RagRetriever):
        def postprocess_docs(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            theirs, _ = super().postprocess_docs(*args, **kwargs)
            ids = theirs.new_full(theirs.shape, tokenizer.pad_token_id)
            ids[:, : read.shape[1]] = read
            return ids, (ids != tokenizer.pad_token_id).long()

    with torch.no_grad():
        read = prompts(rag, asked, rag.terms(asked, k, "soft").ids)
    found = SamePrompts(config, words, tokenizer, index=CustomHFIndex(DIM, data))
    found.set_ctx_encoder_tokenizer(lambda titles, texts, **how: words(texts, **how))
    config.generator.bos_token_id = None  # which T5's configuration lost in transformers 5, and `get_nll` asks for
    model = RagSequence(config, question_encoder=towers[0], generator=reader, retriever=found).eval()
    model.set_context_encoder_for_training(towers[1].eval())  # no dropout, as ours
    batch = words([q.question for q in asked], return_tensors="pt", padding=True)
    given = {name: batch[name].to(rag.model.device) for name in ("input_ids", "attention_mask")}
    return model.to(rag.model.device), given | {"labels": labels(rag, asked)}


@torch.no_grad()
def prompts(rag: RAG, asked: list[Question], ids: Tensor) -> Tensor:
    """Our tokens of these passages, a row for each question and passage, padded to the longest."""
    asks, answers = [q.question for q in asked], [q.answers[0] for q in asked]
    gates = rag.model.gates(rag.corpus, "soft")
    rows, _ = rag.model.rows(rag.corpus, asks, answers, ids, gates, "soft", closed_book=False)
    pad = rag.model.generator.tokenizer.pad_token_id
    return nn.utils.rnn.pad_sequence([torch.from_numpy(row.ids[: row.prompt]) for row in rows], True, pad)


def labels(rag: RAG, asked: list[Question]) -> Tensor:
    """Hugging Face's RAG takes the decoder's inputs for labels and drops the first: the start token has to be there."""
    start = rag.model.generator.reader.start
    rows = rag.model.generator.prompt.answers([q.answers[0] for q in asked])
    rows = [torch.cat([torch.from_numpy(start), torch.from_numpy(row)]) for row in rows]
    pad = rag.model.generator.tokenizer.pad_token_id
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad).to(rag.model.device)


def hf_step(model: Any, rag: RAG, batch: dict[str, Tensor]) -> None:
    """One step's loss and gradient, in the precision of ours."""
    model.zero_grad(set_to_none=True)
    with rag.model.autocast():
        loss = model(**batch).loss.mean()
    loss.backward()


def alike(model: Any, rag: RAG, asked: list[Question], batch: dict[str, Tensor], k: int) -> dict[str, float]:
    """Of what is timed, on the batch that it is timed on: the losses, ours, as by default, and Hugging Face's; and the
    cosine of our gradients as by default and with every row."""
    losses, slopes = [], []
    for share in (0.0, 0.02):
        losses.append(our_step(rag, asked, k, rag_sequence, share))
        slopes.append(torch.cat([p.grad.double().flatten() for p in rag.model.parameters() if p.grad is not None]))
    with torch.no_grad(), rag.model.autocast():
        theirs = model(**batch).loss
    return {
        "loss": losses[1].mean().item(),
        "loss_hf_rag": theirs.mean().item(),
        "difference": max((ours - theirs).abs().max().item() for ours in losses),
        "cosine": torch.cosine_similarity(*slopes, dim=0).item(),
    }


# ----------------------------------------------------------------------------------------------------------- measuring


def peak() -> float:
    """MiB, the most that was resident since the process began (on Linux: since `forget_peak`); of a GPU's that it gave
    out."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def forget_peak() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def alone(arm: str, passages: int, k: int, device: str) -> None:
    """In a process of its own: seconds and MiB of a step, as JSON on the last line."""
    rag, asked = system("t5", passages, k, device), questions(BATCH)
    if arm != "hf":
        step: Callable[[], object] = partial(our_step, rag, asked, k, rag_sequence, 0.02 if arm == "ours" else 0.0)
    else:
        model, batch = hugging_face(rag, k, asked)
        step = partial(hf_step, model, rag, batch)
    forget_peak()
    before = peak()
    times = [seconds(step) for _ in range(2)]
    print(json.dumps({"seconds": median(times), "MiB": peak() - before}))


def apart(arm: str, device: str, passages: int = PASSAGES, k: int = K) -> dict[str, float]:
    size = ["--passages", str(passages), "--k", str(k), "--device", device]
    command = [sys.executable, __file__, "--arm", arm, *size]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def beside_hugging_face(asked: list[Question], device: str, rounds: int, note: Callable[..., None]) -> None:
    """Losses on one batch, questions per second and peak, ours and its."""
    for name, k in ((f"_k{FEW}", FEW), ("", MANY)):
        rag = system("t5", PASSAGES, k, device)
        model, batch = hugging_face(rag, k, asked)
        note(**{key + name: value for key, value in alike(model, rag, asked, batch, k).items()})
        arms = {
            "hf": partial(hf_step, model, rag, batch),
            "ours": partial(our_step, rag, asked, k, rag_sequence, 0.02),
            "every row": partial(our_step, rag, asked, k, rag_sequence, 0.0),
        }
        times = interleaved(arms, rounds)
        note(**{f"over_hf_rag{name}": over(times, "hf", "ours")})
        note(**{f"over_hf_rag_every_row{name}": over(times, "hf", "every row")})
    note(questions_per_second=BATCH / median(times["ours"]))
    ours_alone, theirs_alone = (apart(arm, device, k=MANY) for arm in ("ours", "hf"))
    note(peak_MiB=ours_alone["MiB"], peak_MiB_hf_rag=theirs_alone["MiB"])
    note(peak_over_hf_rag=ours_alone["MiB"] / theirs_alone["MiB"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a round or three, no growth")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--arm", choices=["ours", "every row", "hf"], help=argparse.SUPPRESS)
    parser.add_argument("--passages", type=int, default=PASSAGES, help=argparse.SUPPRESS)
    parser.add_argument("--k", type=int, default=K, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        alone(options.arm, options.passages, options.k, options.device)
        return
    rounds, asked = (3 if options.quick else 7), questions(BATCH)
    figures: dict[str, float] = {}

    def note(**found: float) -> None:
        figures.update(found)
        for name, value in found.items():
            print(f"{name:24} {value:.4f}", flush=True)
        if options.json:  # what there is already
            write_file(options.json, json.dumps(figures, indent=2))

    note(**utilisation(system("llama", PASSAGES, K, options.device), asked, K, rounds))
    for reader in ("llama", "t5"):
        rag = system(reader, PASSAGES, K, options.device)
        hold_all(rag)
        bare = bare_step(rag, asked, K)
        times = interleaved({"ours": partial(our_step, rag, asked, K, marginal, 0.0), "bare": bare}, rounds)
        note(**{"over_bare" if reader == "llama" else "over_bare_t5": over(times, "ours", "bare")})

    if find_spec("datasets"):
        beside_hugging_face(asked, options.device, 1 if options.quick else rounds, note)
    else:
        print("Hugging Face's RAG is left out: it wants datasets (pip install 'e2erag[benchmarks]')", file=sys.stderr)
    if not options.quick:
        every = partial(apart, "every row", options.device)
        own, grown = every(k=MANY), {"k": every(k=4 * MANY), "corpus": every(passages=16 * PASSAGES, k=MANY)}
        for name, found in grown.items():
            note(**{f"seconds_{name}_grown": found["seconds"] / own["seconds"]})
            note(**{f"peak_{name}_grown": found["MiB"] / own["MiB"]})


if __name__ == "__main__":
    main()
