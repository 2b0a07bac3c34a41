"""Does the extractor learn from answers alone what of a page to keep? SQuAD articles printed as realistic PDFs.

    python benchmarks/extractor_learns.py [--quick] [--json FILE] [--seeds 0 1 2] [--arms NAME ...] [--out FOLDER]
                                          [--corpus squad | reports]

**squad**: every seed prints other articles, as journal papers, reports and web pages, with running heads, footers, page
numbers, sidebars and notices. A system over all-MiniLM-L6-v2 and SmolLM2-135M-Instruct is trained on −log p(y|x) of
some of them (at most 500 questions) and measured on unseen ones, whose boilerplate is partly of kinds that training
never showed.

Candidates are a page in pieces of at most 128 tokens and nothing else, so that what is measured is what to keep: with
blocks and windows of several sizes there are candidates without boilerplate anyway, and windows of so many lines hold
more text where nothing else is printed. Half of the lines aren't text.

The reader is first taught the form of answers in every arm alike, on questions about clean articles that nothing else
uses: an untrained one spends some twenty nats an answer on wanting to say a sentence, and what it read shows in little
of that. They count among the 500.

Arms: `printed` (nothing trained), `clean` (nothing trained, the same articles printed without boilerplate), `oracle`
(nothing trained, gates set by hand: boilerplate shut, text open), `fixed-N` (fixed chunks of N tokens), `extractor`
(only the extractor is trained), `retriever` and `retriever-clean` (only the retriever is trained, on either print),
`both` (at once), `then` (the retriever over what the extractor of `extractor`, done before, keeps: with soft gates, and
in `then-hard` with hard ones). Share of the distance closed:

    (arm − printed) / (clean − printed)     and of the last three     (arm − retriever) / (retriever-clean − retriever)

**reports**: the ten accident reports of examples/ntsb, of which every seed draws six to learn from and four to test on;
candidates of every granularity, the prior on. They have no clean print, so what is told is what training moved.

A run can be stopped: what is done stays in `--out`, one file per arm and seed, and is not done again. Beside it stand
what training logged and the extractor that came of it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from random import Random
from time import perf_counter

import numpy as np
import torch
from figures import interval, write_figures
from safetensors.torch import load_file, save_file
from squad_pdf import FOLDER, UNSEEN, Article, articles, clean, paragraphs, render, roles
from stages import drawn
from torch import Tensor

from e2erag import RAG
from e2erag.artefact import write_file, write_folder
from e2erag.extract import Document, Extraction, Extractor, ExtractorConfig, GateMode, read
from e2erag.questions import Question
from e2erag.rag import GENERATOR
from e2erag.retriever import RetrieverConfig
from e2erag.train import FitConfig, marginal

FIXED, AFTER = (64, 128, 256), ("then", "then-hard")
ARMS = (
    "printed", "clean", "oracle", *(f"fixed-{n}" for n in FIXED),
    "extractor", "retriever", "retriever-clean", "both", *AFTER,
)  # fmt: skip
CLEAN = ("clean", "oracle", "retriever-clean")
"""Arms that need to know what is boilerplate."""
GATES = ("retrieve", "read")
TEXT = ("text", "heading")  # roles of the lines that should stay
FROZEN = {"both": ("generator",), "extractor": ("retriever", "generator")} | dict.fromkeys(
    ("retriever", "retriever-clean", *AFTER), ("extractor", "generator")
)
BASE = {"extractor": ("printed", "clean")} | dict.fromkeys(("both", *AFTER), ("retriever", "retriever-clean"))
"""Of arms with a trained extractor, the two that differ from it by what is printed."""
TAUGHT = ("extractor", "retriever")  # frozen while the reader is taught
FORM, FORM_LOOK = 4, 500_000
"""Articles that teach the reader, and the seed of how they look."""
GATED = (*FROZEN, "oracle")
"""Arms whose gates needn't all be open, so that soft and hard differ."""


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        corpus: "squad" or "reports".
        articles: to learn from, and unseen ones to test on.
        paragraphs: of each article.
        questions: to learn from, and to test on.
        form: questions that teach the reader the form of answers, beforehand.
        read: test questions whose answers' likelihood is measured.
        share: of the printed lines, those that aren't text.
        sizes: of the windows, in lines; 1000: a page, in pieces of `tokens`.
        tokens: of a window, at most.
        k: passages read per question; k_learning, mined, and negatives drawn: while training.
        temperature: of the retriever; calibrate: questions to learn from that it is fitted to first, before any gate
            is shut.
        hidden: width of the extractor's network.
        prior_weight: α of log π; 0 leaves the gates alone to learn.
        paths: of the keep gates, those that learn; the others stay open.
        straight_through: with "sample" gates, hard ones going forward.
        objective, epochs, batch_size, refresh_every, gates, gate_weight, keep_rate, token_price, gate_clip,
            gate_explore, lr_extractor: `FitConfig`'s.
    """

    corpus: str = "squad"
    articles: tuple[int, int] = (8, 24)
    paragraphs: int = 12
    questions: tuple[int, int] = (384, 1200)
    form: int = 96
    read: int = 128
    share: float = 0.5
    sizes: tuple[int, ...] = (1000,)
    tokens: int = 128
    k: int = 2
    k_learning: int = 3
    mined: int = 1
    negatives: int = 16
    temperature: float = 0.05
    calibrate: int = 0
    hidden: int = 24
    prior_weight: float = 0.0
    paths: tuple[str, ...] = ("retrieve", "read")
    straight_through: bool = False
    objective: str = "marginal"
    epochs: int = 1
    batch_size: int = 8
    refresh_every: int = 6
    gates: GateMode = "soft"
    gate_weight: float = 0.3
    keep_rate: float = 0.5
    token_price: float = 0.0
    gate_clip: float = 0.0
    gate_explore: float = 4.0
    lr_extractor: float = 2e-2

    @property
    def candidates(self) -> ExtractorConfig:
        """For articles windows and nothing else, and no line that travels with them."""
        c = ExtractorConfig(
            hidden=self.hidden, sizes=self.sizes, max_tokens=self.tokens, straight_through=self.straight_through
        )
        return c if self.corpus == "reports" else replace(c, identity_lines=0, kinds=())


REPORTS = Size(
    corpus="reports", tokens=254, hidden=48, articles=(6, 4), questions=(500, 500), sizes=(4, 8), k=4, prior_weight=1.0,
    calibrate=64, epochs=3, batch_size=4, refresh_every=4, keep_rate=0.8, lr_extractor=3e-2,
)  # fmt: skip
"""Candidates as in `make demo`; of four passages read one is mined. There `fit`'s defaults, which differ in k_learning,
mined, negatives, token_price, gate_clip and gate_explore, harm an extractor alone (LOG.md, 2026-11-29)."""
QUICK = Size(articles=(2, 2), paragraphs=4, questions=(8, 12), form=4, read=4)


@dataclass(frozen=True)
class Print:
    """Documents with, per line, its role and its paragraph, and the questions asked of them."""

    documents: list[Document]
    roles: list[str]
    paragraphs: list[str | None]
    questions: list[tuple[Question, str]]


def printed(
    chosen: Sequence[Article], others: Sequence[Article], count: int, share: float, seed: int, folder: Path, bare: bool
) -> Print:
    """The articles as PDFs, read back; `bare` prints the text alone, else a `share` of the lines isn't text, and
    sidebars quote `others`.

    `count` questions are drawn by the seed."""
    documents, kinds, owners = [], [], []
    for number, article in enumerate(chosen):
        path = folder / f"{'bare' if bare else 'full'}-{seed}-{number}.pdf"
        look = seed + 10 * number
        gold = clean(article, path, look) if bare else render(article, path, look, None, others, share)
        document = read(path)
        documents.append(document)
        kinds += roles(document, gold)
        owners += paragraphs(document, gold)
    asked = [(Question(q.text, q.answers), q.paragraph) for article in chosen for q in article.questions]
    Random(seed).shuffle(asked)
    return Print(documents, kinds, owners, asked[:count])


def measure(rag: RAG, data: Print, size: Size) -> dict[str, float]:
    """One system on one print, in the gate mode that it has indexed it in."""
    corpus, mode = rag.corpus, rag.config.mode
    assert corpus is not None
    texts = [text.casefold() for document in corpus.documents for text in document.texts]

    def holds(passage: int, question: Question, paragraph: str) -> bool:
        """Whether a passage's own lines hold an answer in the paragraph that the question was asked of."""
        lines, carried = corpus.lines(passage)
        words = " ".join(texts[line] for line in lines[carried:].tolist() if data.paragraphs[line] == paragraph)
        return any(answer.casefold() in words for answer in question.answers)

    asked = [question for question, _ in data.questions]
    found = rag.search([question.question for question in asked], size.k)
    right = [
        [i >= 0 and holds(i, *question) for i in ids]
        for ids, question in zip(found.ids.tolist(), data.questions, strict=True)
    ]
    losses: list[float] = []
    with torch.no_grad():
        gates = rag.model.gates(corpus, mode)
        rows, _ = rag.model.rows(corpus, [q.question for q in asked], None, found.ids, gates, mode, closed_book=False)
        for start in range(0, min(size.read, len(asked)), 8):
            terms = rag.terms(asked[start : min(start + 8, size.read)], size.k, mode)
            losses += marginal(terms).tolist()
    tokens = corpus.retriever_lines.sizes
    lines = [corpus.lines(i) for i in range(len(corpus.passages))]
    kept = [gates.kept(gates.retrieve, *each) if mode == "hard" else each[0] for each in lines]
    figures = {
        "recall@1": float(np.mean([row[0] for row in right])),
        "recall@k": float(np.mean([any(row) for row in right])),
        "answer_logp": -float(np.mean(losses)),
        "tokens_read": sum(int((row.owner >= 0).sum()) for row in rows) / len(asked),
        "tokens_stored": float(sum(tokens[each].sum() for each in kept)),
        "candidates": float(len(kept)),
    }
    text = np.asarray([role in TEXT for role in data.roles])
    for name in GATES:
        logits = getattr(gates.extraction, name)
        soft, hard = (rag.model.extractor.log_gates(logits, mode).exp().cpu().numpy() for mode in ("soft", "hard"))
        for kind, chosen in (("text", text), ("boilerplate", ~text)):
            if chosen.any():
                figures[f"{name}_{kind}"] = float(soft[chosen].mean())
                figures[f"{name}_{kind}_dropped"] = float(1 - hard[chosen].mean())
        figures[f"{name}_auc"] = auc(logits.cpu().numpy(), text)
    return figures


def auc(logits: np.ndarray, text: np.ndarray) -> float:
    """Area under the ROC curve of text against the rest: how often a line of text has the larger logit."""
    text_, rest = logits[text], np.sort(logits[~text])
    ties = np.searchsorted(rest, text_, "left") + np.searchsorted(rest, text_, "right")
    return float(ties.mean() / (2 * len(rest))) if len(rest) and len(text_) else float("nan")


class Labelled(Extractor):
    """An extractor that has been told: text is kept, all else is dropped."""

    def __init__(self, config: ExtractorConfig, keep: Tensor) -> None:
        super().__init__(config)
        self.logits = torch.where(keep, 10.0, -10.0)

    def forward(self, layout: Tensor, text: Tensor, page: Tensor) -> Extraction:
        return super().forward(layout, text, page)._replace(retrieve=self.logits, read=self.logits)


class Partly(Extractor):
    """An extractor of which only some keep gates learn: the others stay open."""

    def __init__(self, config: ExtractorConfig, paths: Sequence[str]) -> None:
        super().__init__(config)
        self.open = [name for name in GATES if name not in paths]

    def forward(self, layout: Tensor, text: Tensor, page: Tensor) -> Extraction:
        out = super().forward(layout, text, page)
        return out._replace(**{name: torch.full_like(out.read, self.config.open_logit) for name in self.open})


def system(seed: int, size: Size, reader: Path | None) -> RAG:
    """Pretrained models and an extractor of which nothing has learned yet; `reader` knows the form of answers."""
    rag = RAG.from_pretrained(
        seed=seed,
        generator=reader or GENERATOR,
        extractor=size.candidates,
        retrieval=RetrieverConfig(prior_weight=size.prior_weight, temperature=size.temperature),
    )
    if set(size.paths) != set(GATES):
        whole = rag.model.extractor
        rag.model.extractor = Partly(whole.config, size.paths).to(whole.gates.weight.device).eval()
        rag.model.extractor.load_state_dict(whole.state_dict())
    return rag


def teach(seed: int, size: Size, form: Print, folder: Path) -> Path:
    """The folder of a reader that has learned the form of answers, from clean articles with its other stages frozen."""
    if not folder.is_dir():
        rag = system(seed, size, None)
        rag.index(form.documents)
        rag.fit([question for question, _ in form.questions], k=size.k, epochs=1, freeze=TAUGHT, seed=seed)
        with write_folder(folder) as new:
            rag.model.generator.save(new)
    return folder


def run(arm: str, seed: int, size: Size, data: dict[str, Print], reader: Path) -> dict[str, dict[str, float]]:
    """Train what the arm trains, and measure on unseen articles with soft and with hard gates."""
    bare = arm in ("clean", "retriever-clean")
    train, test = (data[f"{split} {'bare' if bare else 'full'}"] for split in ("train", "test"))
    rag = system(seed, size, reader)
    if arm.startswith("fixed"):
        chunks = int(arm.split("-")[1])
        rag.model.extractor = Extractor.fixed(chunks, chunks // 8, rag.model.extractor.config.text_dim)
    if arm in AFTER:
        rag.model.extractor.load_state_dict(load_file(reader.parent / f"extractor-{seed}" / "extractor.safetensors"))
    asked = [question for question, _ in train.questions]
    if arm in FROZEN or size.calibrate:
        rag.index(train.documents)
    if size.calibrate:
        some = Random(seed).sample(asked, min(size.calibrate, len(asked)))
        print(f"seed {seed}, {arm}: {rag.calibrate(some, size.k_learning)}", file=sys.stderr)
    if arm == "oracle":
        rag.model.extractor = Labelled(rag.model.extractor.config, torch.tensor([role in TEXT for role in test.roles]))
    seconds = steps = 0.0
    if arm in FROZEN:
        config = FitConfig(
            objective=size.objective, epochs=size.epochs, batch_size=size.batch_size, k=size.k_learning,
            mined=size.mined, negatives=size.negatives, refresh_every=size.refresh_every, keep_rate=size.keep_rate,
            gates="hard" if arm == "then-hard" else size.gates, gate_weight=size.gate_weight, seed=seed,
            token_price=size.token_price, gate_clip=size.gate_clip, gate_explore=size.gate_explore,
            lr_extractor=size.lr_extractor, calibrate=0, freeze=FROZEN[arm], folder=reader.parent / f"{arm}-{seed}",
        )  # fmt: skip
        done = rag.fit(asked, config)
        save_file(rag.model.extractor.state_dict(), reader.parent / f"{arm}-{seed}" / "extractor.safetensors")
        seconds, steps = done.seconds, float(done.steps)
    figures = {}
    for mode in ("soft", "hard") if arm in GATED else ("soft",):
        rag.config = replace(rag.config, mode=mode)
        rag.index(test.documents)
        figures[mode] = measure(rag, test, size) | {"train_seconds": seconds, "steps": steps}
    figures.setdefault("hard", figures["soft"])  # nothing trained: every gate is open, nothing is cut
    return figures


def prepare(seed: int, size: Size, folder: Path, out: Path) -> dict[str, Print]:
    """Training articles and unseen ones by the seed, each printed with boilerplate and without."""
    pools = [articles(folder, "train14"), articles(folder, "dev32")]
    data = {}
    for split, pool, count, questions, base in zip(
        ("train", "test"), pools, size.articles, size.questions, (seed, UNSEEN + seed), strict=True
    ):
        drawn = Random(f"{split} {seed}").sample(pool, len(pool))
        chosen, others = [cut(article, size.paragraphs) for article in drawn[:count]], drawn[count:]
        for bare in (False, True):
            data[f"{split} {'bare' if bare else 'full'}"] = printed(
                chosen, others, questions, size.share, base, out / "pdf", bare
            )
    data["form"] = form(seed, size, pools[0], out)
    return data | reports(seed, size) if size.corpus == "reports" else data


def form(seed: int, size: Size, pool: Sequence[Article], out: Path) -> Print:
    """Clean articles out of the pool that teach the reader, none of those to learn from."""
    others = Random(f"train {seed}").sample(pool, len(pool))[size.articles[0] :]
    rest = [cut(article, size.paragraphs) for article in others[:FORM]]
    (out / "pdf").mkdir(parents=True, exist_ok=True)
    return printed(rest, others, size.form, size.share, FORM_LOOK + seed, out / "pdf", bare=True)


def reports(seed: int, size: Size) -> dict[str, Print]:
    """Accident reports and the questions asked of them; a page stands for a paragraph, and every line is text."""
    data = {}
    parts = drawn(seed, size.articles)
    for split, (chosen, asked), count in zip(("train", "test"), parts, size.questions, strict=True):
        documents = [read(path) for path in chosen]
        pages = [f"{d.name} {unit.page}" for d in documents for page in d.pages for unit in page.units]
        questions = [(question, f"{question.file} {question.page}") for question in asked]
        data[f"{split} full"] = Print(documents, ["text"] * len(pages), pages, questions[:count])
    return data


def cut(article: Article, count: int) -> Article:
    """Its first paragraphs, and the questions that these answer."""
    kept = {paragraph.id for paragraph in article.paragraphs[:count]}
    asked = tuple(question for question in article.questions if question.paragraph in kept)
    return replace(article, paragraphs=article.paragraphs[:count], questions=asked)


def closed(cells: dict[str, dict[str, dict[str, float]]], arm: str, mode: str, metric: str) -> float:
    """Share of the distance between printed and clean text that training closed; NaN where there is none."""
    low, high = BASE[arm]
    if low not in cells or high not in cells or arm not in cells:
        return float("nan")
    distance = cells[high][mode][metric] - cells[low][mode][metric]
    return (cells[arm][mode][metric] - cells[low][mode][metric]) / distance if distance > 0 else float("nan")


def summary(results: dict[int, dict[str, dict[str, dict[str, float]]]]) -> dict[str, object]:
    """The figures that the benchmark is for, each as [mean, low, high] over the seeds: every arm's recall, likelihood
    and tokens; the gap, soft less hard; what gates learned, and what a trained arm has over the untrained one and over
    fixed chunks (`less`)."""
    figures: dict[str, object] = {}
    for arm in ARMS:
        cells = [seed[arm] for seed in results.values() if arm in seed]
        if cells:
            figures[arm] = {
                name: {mode: interval([cell[mode][name] for cell in cells]) for mode in ("soft", "hard")}
                | {"gap": interval([cell["soft"][name] - cell["hard"][name] for cell in cells])}
                for name in ("recall@1", "recall@k", "answer_logp", "tokens_read", "tokens_stored")
            }
    for arm, (base, _) in BASE.items():
        for mode in ("soft", "hard"):
            cells = [seed for seed in results.values() if arm in seed]
            if not cells:
                continue
            values = [seed[arm][mode] for seed in cells]
            figures[f"{arm} {mode}"] = {
                "gate_boilerplate": {
                    n: interval([v.get(f"{n}_boilerplate", np.nan) for v in values]) for n in ("retrieve", "read")
                },
                "gate_text": {n: interval([v[f"{n}_text"] for v in values]) for n in ("retrieve", "read")},
                "distance_closed": {
                    metric: interval([closed(seed, arm, mode, metric) for seed in cells])
                    for metric in ("recall@1", "answer_logp")
                },
                "tokens_read_ratio": interval(
                    [s[arm][mode]["tokens_read"] / s[base][mode]["tokens_read"] for s in cells if base in s]
                ),
                "tokens_stored_ratio": interval(
                    [s[arm][mode]["tokens_stored"] / s[base][mode]["tokens_stored"] for s in cells if base in s]
                ),
                "less": {
                    other: {
                        metric: interval([s[arm][mode][metric] - s[other][mode][metric] for s in cells if other in s])
                        for metric in ("recall@1", "recall@k", "answer_logp", "tokens_read", "tokens_stored")
                    }
                    for other in (base, *(f"fixed-{n}" for n in FIXED))
                    if any(other in s for s in cells)
                },
            }
    for name in ("gate_boilerplate", "gate_text", "distance_closed", "tokens_read_ratio"):  # of the extractor alone
        if "extractor" in figures:
            figures[name] = {mode: figures[f"extractor {mode}"][name] for mode in ("soft", "hard")}
    return figures


def place(out: Path, size: Size) -> Path:
    """The folder of what was measured with these settings."""
    return out / sha256(json.dumps(asdict(size)).encode()).hexdigest()[:8]


SHOWN = (
    "recall@1", "recall@k", "answer_logp", "tokens_read", "tokens_stored", "retrieve_text", "retrieve_boilerplate",
    "read_text", "read_boilerplate", "read_boilerplate_dropped", "read_text_dropped", "read_auc",
)  # fmt: skip


def show(results: dict[int, dict[str, dict[str, dict[str, float]]]]) -> None:
    """One row per arm and gate mode: means over the seeds that have it."""
    print(f"{'':24}" + "".join(f"{name.replace('boilerplate', 'boiler'):>20}" for name in SHOWN))
    for arm in ARMS:
        seeds = [cells[arm] for cells in results.values() if arm in cells]
        for mode in ("soft", "hard") if seeds and arm in GATED else ("soft",) * bool(seeds):
            means = [np.mean([cell[mode].get(name, np.nan) for cell in seeds]) for name in SHOWN]
            label = f"{arm} {mode if arm in GATED else ''} ({len(seeds)})"
            print(f"{label:24}" + "".join(f"{value:20.3f}" for value in means))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", choices=("squad", "reports"), default="squad")
    parser.add_argument("--quick", action="store_true", help="a few questions and one seed: only that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="SQuAD as passages and questions (jsonl.gz)")
    parser.add_argument("--out", type=Path, default=Path("runs/extractor_learns"))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help=f"changes to {Size()}")
    options = parser.parse_args()
    size = REPORTS if options.corpus == "reports" else Size()
    if options.quick:
        size = replace(QUICK, corpus=options.corpus)
    for change in options.set:
        name, value = change.split("=", 1)
        size = replace(size, **{name: type(getattr(size, name))(json.loads(value))})
    seeds = options.seeds
    wanted = {*options.arms, *["extractor" for arm in options.arms if arm in AFTER]}  # which these go on from
    arms = [arm for arm in ARMS if arm in wanted and (size.corpus == "squad" or arm not in CLEAN)]
    if options.quick:
        seeds, arms = seeds[:1], [arm for arm in ("printed", "clean", "extractor", *AFTER) if arm in arms]
    out = place(options.out, size)
    (out / "pdf").mkdir(parents=True, exist_ok=True)
    write_file(out / "size.json", json.dumps(asdict(size), indent=2))
    results: dict[int, dict[str, dict[str, dict[str, float]]]] = {}
    for seed in seeds:
        data = None
        results[seed] = {}
        for arm in arms:
            cell = out / f"{arm}-{seed}.json"
            if not cell.is_file():
                data = data or prepare(seed, size, options.folder, out)
                start = perf_counter()
                reader = teach(seed, size, data["form"], out / f"reader-{seed}")
                done = run(arm, seed, size, data, reader)
                write_file(cell, json.dumps(done, indent=2))
                print(f"seed {seed}, {arm}: {perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            results[seed][arm] = json.loads(cell.read_text(encoding="utf-8"))
    show(results)
    figures = summary(results) | {"seeds": seeds, "size": asdict(size)}
    print(json.dumps(figures, indent=2))
    if options.json:
        write_figures(options.json, figures | {"cells": results})


if __name__ == "__main__":
    main()
