"""A short training comparison: what the retriever learns from each objective in the same number of steps.

    python benchmarks/objectives.py [--quick] [--json figures.json] [--seeds 0 1] [--objectives marginal pdist]

SQuAD paragraphs as passages. The retriever alone learns (all-MiniLM-L6-v2; reader SmolLM2-135M-Instruct, frozen, as it
comes), from answers alone, on articles that the test doesn't see; every objective gets the same questions in the same
order, rates and steps. `marginal+1` reads as many passages as the others, one of them mined (BM25 with question and
answer) in place of the last found. Then, over other articles' paragraphs: recall@1, reciprocal rank and log p(gold
paragraph | x), each with the difference to what nothing was trained gives, and its 95 % interval (bootstrap over
questions of all seeds). Runs are kept in a folder, and what is there isn't run again.
"""

import argparse
import json
import warnings
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from reading_table import FOLDER, rows

from e2erag import RAG, RAGConfig
from e2erag.artefact import write_file
from e2erag.evaluation import bootstrap
from e2erag.extract import Extractor, ExtractorConfig
from e2erag.generator import Generator
from e2erag.models import resolve
from e2erag.questions import Question
from e2erag.rag import GENERATOR, RETRIEVER
from e2erag.retriever import Encoder, Retriever, RetrieverConfig
from e2erag.testing import tiny_document

UNTRAINED = "untrained"
OBJECTIVES = ("marginal", "marginal+1", "rag_sequence", "rag_token", "emdr2_token", "pdist", "loop", "contrastive")
"""`emdr2` and `rb` aren't here: read one at a time, their gradients are those of `rag_sequence` and `marginal`. Nor are
`lsr`, `gumbel` and `rloo`, whose gradients have the largest relative error in the audit, nor `reader`, which teaches no
retriever."""
MEASURES = ("recall@1", "reciprocal rank", "log p(gold)")


@dataclass(frozen=True)
class Size:
    """Articles to learn from and to test on, paragraphs of each, questions of both, passages read per question."""

    articles: tuple[int, int] = (8, 16)
    paragraphs: int = 12
    questions: tuple[int, int] = (64, 400)
    k: int = 4


QUICK = Size((2, 2), 4, (8, 20), 2)


def drawn(size: Size, seed: int, folder: Path) -> list[tuple[list[tuple[str, str]], list[Question]]]:
    """Paragraphs (id, text) and questions, to learn from and to test on."""
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
        parts.append(([(p["id"], p["text"]) for p in chosen], questions[:wanted]))
        start += count
    return parts


def system(k: int) -> RAG:
    """Each paragraph a passage, nothing of it gated; the models as they come."""
    encoder = Encoder.load(resolve(RETRIEVER))
    config = ExtractorConfig(text_dim=encoder.dim, sizes=(1,), identity_lines=0, kinds=())
    torch.manual_seed(0)
    rag = RAG(
        Extractor(config), Retriever(encoder, RetrieverConfig()), Generator.load(resolve(GENERATOR)),
        RAGConfig(k=k, mode="soft"),
    )  # fmt: skip
    return rag


@torch.no_grad()
def measured(rag: RAG, questions: list[Question]) -> np.ndarray:
    """Per question the `MEASURES` over what is indexed."""
    assert rag.corpus is not None
    assert rag.index_ is not None
    place = {passage.document.name: i for i, passage in enumerate(rag.corpus.passages)}
    gold = torch.tensor([place[question.file or ""] for question in questions])
    vectors = rag.index_.vectors.float()
    scores = torch.cat(
        [
            rag.model.retriever.encode_questions([q.question for q in questions[i : i + 32]]).float() @ vectors.T
            for i in range(0, len(questions), 32)
        ]
    )
    own = scores.gather(1, gold[:, None])
    rank = 1 + (scores > own).sum(1)
    logp = own[:, 0] - scores.logsumexp(1)
    return torch.stack([(rank == 1).float(), 1 / rank, logp], 1).numpy()


def run(objective: str, size: Size, seed: int, folder: Path) -> dict[str, object]:
    """Train on the first part, measure on the second."""
    (learn, questions), (test, asked) = drawn(size, seed, folder)
    rag, seconds = system(size.k), 0.0
    objective, mined = objective.removesuffix("+1"), int(objective.endswith("+1"))
    if objective != UNTRAINED:
        rag.index([tiny_document([[text]], name) for name, text in learn])
        plain = [Question(q.question, q.answers) for q in questions]  # answers alone: no page is told
        start = perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rag.fit(
                plain, objective=objective, epochs=1, k=size.k - mined, mined=mined, freeze=("extractor", "generator"),
                refresh_every=4, calibrate=0, seed=seed, collapse="ignore", progress=False,
            )  # fmt: skip
        seconds = perf_counter() - start
    rag.index([tiny_document([[text]], name) for name, text in test])
    return {"scores": measured(rag, asked).tolist(), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few questions, two objectives: only that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="SQuAD as passages and questions (jsonl.gz)")
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"))
    args = parser.parse_args()
    size = QUICK if args.quick else Size()
    if args.quick:
        args.objectives, args.seeds = args.objectives[:2], args.seeds[:1]
    place = args.out / sha256(json.dumps(asdict(size)).encode()).hexdigest()[:8]
    found: dict[str, list[np.ndarray]] = {}
    for seed in args.seeds:
        for name in [UNTRAINED, *args.objectives]:
            path = place / f"{name}-{seed}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, json.dumps(run(name, size, seed, args.folder)))
            kept = json.loads(path.read_text())
            found.setdefault(name, []).append(np.asarray(kept["scores"]))
            print(f"seed {seed}, {name}: {kept['seconds']:.0f} s", flush=True)
    scores = {name: np.concatenate(parts) for name, parts in found.items()}
    count = len(scores[UNTRAINED])
    print(f"\n{len(args.seeds)} seeds, {size.questions[0]} questions to learn from, {count} to test on")
    print("(in brackets the difference to untrained, and its interval)")
    print(f"{'':14}" + "".join(f"{m:>17}{'95 %':>19}" for m in MEASURES))
    figures: dict[str, dict[str, list[float]]] = {}
    for name, values in scores.items():
        change = values - scores[UNTRAINED]
        cells, figures[name] = "", {}
        for i, measure in enumerate(MEASURES):
            low, high = bootstrap(change[:, i])
            figures[name][measure] = [float(values[:, i].mean()), float(change[:, i].mean()), low, high]
            cells += f"{values[:, i].mean():9.3f} ({change[:, i].mean():+.3f})  [{low:+.3f}, {high:+.3f}]"
        print(f"{name:14}{cells}")
    if args.json:
        write_file(args.json, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
