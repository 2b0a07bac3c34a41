"""A short training comparison: what the retriever learns from each objective in the same number of steps.

    python benchmarks/objectives.py [--quick] [--json figures.json] [--corpus squad | reports] [--seeds 0 1]
                                    [--objectives marginal pdist] [--set NAME=VALUE ...]

The retriever alone learns (all-MiniLM-L6-v2; SmolLM2-135M-Instruct reads and is frozen), from answers alone, on
documents that the test doesn't see; every objective gets the same questions in the same order, rates and steps.
`marginal+1` reads as many passages as the others, one of them mined (BM25 with question and answer) in place of the
last found. Then, over other documents: recall@1, reciprocal rank and log p(gold passages | x), each with the difference
to what nothing was trained gives and to `marginal`, and its 95 % interval (bootstrap over questions of all seeds).

**squad**: articles, whose paragraphs are the passages, one of them gold; the reader as it comes, and τ as it begins.

**reports**: of the ten accident reports of examples/ntsb every seed draws six to learn from and four to test on, as in
stages.py; passages are what an untrained extractor proposes, gold are those with lines on the page that a question
names. The reader has learned the form of answers (extractor_learns.py), and all else is as `fit` does by itself: three
epochs, τ fitted first.

`--set` changes settings of `fit`. Runs are kept in a folder, and what is there isn't run again.
"""

import argparse
import json
import warnings
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import extractor_learns
import numpy as np
import stages
import torch
from reading_table import FOLDER, rows
from squad_pdf import articles

from e2erag import RAG, RAGConfig
from e2erag.artefact import write_file
from e2erag.evaluation import bootstrap, on_gold_page
from e2erag.extract import Document, Extractor, ExtractorConfig, read
from e2erag.generator import Generator
from e2erag.models import resolve
from e2erag.questions import Question
from e2erag.rag import GENERATOR, RETRIEVER
from e2erag.retriever import Encoder, Retriever, RetrieverConfig
from e2erag.testing import tiny_document
from e2erag.train import FitConfig

UNTRAINED = "untrained"
OBJECTIVES = ("marginal", "marginal+1", "rag_sequence", "rag_token", "emdr2_token", "pdist", "loop", "contrastive")
"""`emdr2` and `rb` aren't here: read one at a time, their gradients are those of `rag_sequence` and `marginal`. Nor are
`lsr`, `gumbel` and `rloo`, whose gradients have the largest relative error in the audit, nor `reader`, which teaches no
retriever."""
MEASURES = ("recall@1", "reciprocal rank", "log p(gold)")


Half = tuple[list[Document], list[Question]]


@dataclass(frozen=True)
class Size:
    """How much of everything: to learn from, and to test on.

    Attributes:
        corpus: "squad" or "reports".
        articles: or reports; paragraphs: of each article.
        questions: of both, at most.
        form: questions that teach the reader of reports the form of answers.
        k: passages read per question; `settings`: others of `fit`.
    """

    corpus: str = "squad"
    articles: tuple[int, int] = (8, 16)
    paragraphs: int = 12
    questions: tuple[int, int] = (64, 400)
    form: int = 96
    k: int = 4
    settings: dict[str, Any] = field(default_factory=lambda: {"epochs": 1, "calibrate": 0})


REPORTS = Size("reports", (6, 4), 0, (500, 500), settings={})
QUICK = {
    "squad": Size("squad", (2, 2), 4, (8, 20), k=2),
    "reports": Size("reports", (1, 1), 0, (4, 8), form=4, k=2, settings={"epochs": 1}),
}


def squad(size: Size, seed: int, folder: Path) -> list[Half]:
    """Paragraphs as documents and questions about them, to learn from and to test on."""
    draw = np.random.default_rng(seed)
    articles: dict[str, list[dict]] = {}
    for passage in rows(folder / "dev32.passages.jsonl.gz"):
        articles.setdefault(passage["title"], []).append(passage)
    titles = [sorted(articles)[i] for i in draw.permutation(len(articles))]
    asked = [row for row in rows(folder / "dev32.qa.jsonl.gz") if row["answerable"]]
    asked = [asked[i] for i in draw.permutation(len(asked))]
    parts, start = [], 0
    for count, wanted in zip(size.articles, size.questions, strict=True):
        chosen = [p for title in titles[start : start + count] for p in articles[title][: size.paragraphs]]
        ids = {p["id"] for p in chosen}
        questions = [
            Question(row["question"], (min(row["answers"], key=len),), row["gold"][0], 1)
            for row in asked
            if row["gold"][0] in ids
        ]
        parts.append(([tiny_document([[p["text"]]], p["id"]) for p in chosen], questions[:wanted]))
        start += count
    return parts


def reports(size: Size, seed: int) -> list[Half]:
    """Accident reports and questions about them, to learn from and to test on."""
    return [
        ([read(path) for path in chosen], asked[:wanted])
        for (chosen, asked), wanted in zip(stages.drawn(seed, size.articles), size.questions, strict=True)
    ]


def system(size: Size, seed: int, folder: Path, place: Path) -> RAG:
    """What nothing was trained of but the reader of reports, which has learned the form of answers."""
    if size.corpus == "reports":
        of = replace(extractor_learns.REPORTS, form=size.form)
        reader = place / f"reader-{seed}"
        if not reader.is_dir():
            extractor_learns.teach(
                seed, of, extractor_learns.form(seed, of, articles(folder, "train14"), place), reader
            )
        return extractor_learns.system(seed, of, reader)
    encoder = Encoder.load(resolve(RETRIEVER))
    config = ExtractorConfig(text_dim=encoder.dim, sizes=(1,), identity_lines=0, kinds=())  # paragraphs, ungated
    torch.manual_seed(0)
    return RAG(
        Extractor(config), Retriever(encoder, RetrieverConfig()), Generator.load(resolve(GENERATOR)),
        RAGConfig(k=size.k, mode="soft"),
    )  # fmt: skip


@torch.no_grad()
def measured(rag: RAG, questions: list[Question]) -> np.ndarray:
    """Per question the `MEASURES` over what is indexed."""
    assert rag.corpus is not None
    assert rag.index_ is not None
    gold = torch.tensor([[on_gold_page(question, each) for each in rag.corpus.passages] for question in questions])
    vectors = rag.index_.vectors.float()
    scores = torch.cat(
        [
            rag.model.retriever.encode_questions([q.question for q in questions[i : i + 32]]).float() @ vectors.T
            for i in range(0, len(questions), 32)
        ]
    )
    own = scores.masked_fill(~gold, -torch.inf)
    rank = 1 + (scores > own.amax(1, keepdim=True)).sum(1)
    logp = own.logsumexp(1) - scores.logsumexp(1)
    return torch.stack([(rank == 1).float(), 1 / rank, logp], 1).numpy()


def run(objective: str, size: Size, seed: int, folder: Path, place: Path) -> dict[str, object]:
    """Train on the first part, measure on the second."""
    (learn, questions), (test, asked) = reports(size, seed) if size.corpus == "reports" else squad(size, seed, folder)
    rag, seconds = system(size, seed, folder, place), 0.0
    objective, mined = objective.removesuffix("+1"), int(objective.endswith("+1"))
    if objective != UNTRAINED:
        rag.index(learn)
        plain = [Question(q.question, q.answers) for q in questions]  # answers alone: no page is told
        start = perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rag.fit(
                plain, objective=objective, k=size.k - mined, mined=mined, freeze=("extractor", "generator"),
                seed=seed, collapse="ignore", progress=False, **size.settings,
            )  # fmt: skip
        seconds = perf_counter() - start
    rag.index(test)
    found = measured(rag, asked).tolist()
    return {"scores": found, "seconds": seconds, "temperature": float(rag.model.retriever.temperature)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few questions, two objectives: only that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--corpus", choices=QUICK, default="squad")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="SQuAD as passages and questions (jsonl.gz)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of `fit`")
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"))
    args = parser.parse_args()
    size = QUICK[args.corpus] if args.quick else REPORTS if args.corpus == "reports" else Size()
    settings = {name: json.loads(value) for name, value in (change.split("=", 1) for change in args.set)}
    FitConfig().changed(**settings)  # which refuses what can't be
    size = replace(size, settings=size.settings | settings)
    place = args.out / sha256(json.dumps(asdict(size)).encode()).hexdigest()[:8]
    if args.quick:
        args.objectives, args.seeds = args.objectives[:2], args.seeds[:1]
    found: dict[str, list[np.ndarray]] = {}
    for seed in args.seeds:
        for name in [UNTRAINED, *args.objectives]:
            path = place / f"{name}-{seed}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, json.dumps(run(name, size, seed, args.folder, place)))
            kept = json.loads(path.read_text())
            found.setdefault(name, []).append(np.asarray(kept["scores"]))
            print(f"seed {seed}, {name}: {kept['seconds']:.0f} s", flush=True)
    scores = {name: np.concatenate(parts) for name, parts in found.items()}
    print(f"\nseeds {', '.join(map(str, args.seeds))}: {len(scores[UNTRAINED])} questions to test on")
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for base in [name for name in (UNTRAINED, "marginal") if name in scores]:
        print(f"\n(in brackets the difference to {base}, and its interval)")
        print(f"{'':14}" + "".join(f"{m:>17}{'95 %':>19}" for m in MEASURES))
        for name, values in scores.items():
            cells, change = "", values - scores[base]
            for i, measure in enumerate(MEASURES):
                mean, less = float(values[:, i].mean()), float(change[:, i].mean())
                low, high = bootstrap(change[:, i])
                figures.setdefault(name, {}).setdefault(measure, {})[f"less {base}"] = [mean, less, low, high]
                cells += f"{mean:9.3f} ({less:+.3f})  [{low:+.3f}, {high:+.3f}]"
            print(f"{name:14}{cells}")
    if args.json:
        write_file(args.json, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
