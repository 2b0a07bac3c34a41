"""How well every kind of index finds, on judged collections, and at what cost.

    python benchmarks/kinds.py [--quick] [--json figures.json] [--runs FOLDER] [--data FOLDER]

Collections: Cranfield (1,400 abstracts, 225 queries, grades) and, without --quick, SQuAD (20,411 paragraphs of which
1,388 are dev's, every fourth answerable question of dev; a question's own paragraph is the one that counts). The
encoder is all-MiniLM-L6-v2 as it comes; the hybrid adds β·BM25 to the score, with β not tuned. Per kind nDCG@10 with a
95 % bootstrap interval over queries, reciprocal rank, recall, the share of the exact index's ten that it finds, and its
time for a query. Measures are ir_measures'. Passages are cut at the encoder's 256 tokens; BM25 reads them whole.
"""

import argparse
import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from tqdm import tqdm

from e2erag.artefact import write_file
from e2erag.collections import MEASURES, Collection, measure, write_run
from e2erag.evaluation import bootstrap
from e2erag.models import resolve
from e2erag.rag import RETRIEVER
from e2erag.retriever import BM25, Encoder, ExactIndex, FaissIndex, Hits, Index, MilvusIndex, Source, Store

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
K = 100
TEMPERATURE, BETA = 0.05, 0.1
"""s = ⟨q, d⟩/τ + β·BM25, as in `RetrieverConfig`."""


def cranfield(folder: Path) -> Collection:
    """Its own format: fields under .I, .T, .A, .B, .W; queries are judged by their place in the file. Grades 1 to 4 are
    relevant, 1 the most; −1 and what is missing aren't."""

    def fields(name: str, wanted: str) -> list[str]:
        records = re.split(r"^\.I .*\n", (folder / name).read_text(encoding="utf-8"), flags=re.M)[1:]
        found = []
        for record in records:
            parts = dict(re.findall(r"^\.(\w)\n(.*?)(?=^\.\w\n|\Z)", record, flags=re.M | re.S))
            found.append(" ".join(" ".join(parts.get(part, "") for part in wanted).split()))
        return found

    passages = {str(i): text for i, text in enumerate(fields("cran.all.1400", "TW"), 1)}
    queries = {str(i): text for i, text in enumerate(fields("cran.qry", "W"), 1)}
    judgements: dict[str, dict[str, int]] = {}
    for line in (folder / "cranqrel").read_text().splitlines():
        query, passage, grade = line.split()
        judgements.setdefault(query, {})[passage] = 5 - int(grade) if int(grade) > 0 else 0
    return Collection(passages, {q: queries[q] for q in judgements}, judgements)


def squad(folder: Path, every: int = 4) -> Collection:
    """All paragraphs, and every fourth answerable question of dev."""

    def rows(name: str) -> list[dict]:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    texts = rows("dev32.passages") + rows("corpus442.passages")
    asked = [row for row in rows("dev32.qa") if row["answerable"]][::every]
    return Collection(
        {row["id"]: row["text"] for row in texts},
        {row["id"]: row["question"] for row in asked},
        {row["id"]: {row["gold"][0]: 1} for row in asked},
    )


@torch.no_grad()
def encoded(encoder: Encoder, texts: list[str], role: str, size: int = 2048) -> Tensor:
    parts = [texts[i : i + size] for i in range(0, len(texts), size)]
    return torch.cat([encoder.encode_text(part, role) for part in tqdm(parts, desc=role, mininterval=10)])  # type: ignore[arg-type]


def kinds(rows: Tensor, folder: Path) -> dict[str, Callable[[], Index]]:
    """Ways to make each index; making it is timed."""
    source = [Source("corpus", "1", len(rows))]

    def stored(name: str, dtype: torch.dtype = torch.float32) -> Store:
        store = Store(folder / name, dtype)
        store.add(source, rows)
        return store

    def faiss(kind: str) -> Callable[[], Index]:
        return lambda: FaissIndex(stored(f"faiss-{kind}"), kind)

    return {
        "exact float32": lambda: ExactIndex(stored("exact")),
        "exact float16": lambda: ExactIndex(stored("half", torch.float16)),
        **{f"faiss {kind}": faiss(kind) for kind in ("Flat", "HNSW", "IVF", "SQ", "PQ")},
        "Milvus Lite": lambda: MilvusIndex(stored("milvus")),
    }


def found(ids: Tensor, scores: Tensor, names: list[str], queries: list[str]) -> dict[str, dict[str, float]]:
    return {
        query: {names[i]: s for i, s in zip(row, score, strict=True) if i >= 0}
        for query, row, score in zip(queries, ids.tolist(), scores.tolist(), strict=True)
    }


def compare(name: str, collection: Collection, encoder: Encoder, runs: Path | None) -> dict[str, dict[str, float]]:
    """Every kind on one collection: figures by kind, printed as they come."""
    names, texts = list(collection.passages), list(collection.passages.values())
    queries, questions = list(collection.queries), list(collection.queries.values())
    rows = torch.cat([encoded(encoder, texts, "document"), torch.zeros(len(texts), 1)], 1)
    asked = torch.cat([encoded(encoder, questions, "query") / TEMPERATURE, torch.ones(len(questions), 1)], 1)
    print(f"\n{name}: {len(texts):,} passages, {len(queries):,} queries, K = {K}")
    head = "".join(f"{m:>9}" for m in MEASURES)
    print(f"{'':16}{head}{'nDCG@10, 95 %':>17}{'exact ten':>11}{'build s':>9}{'ms/query':>10}")
    figures: dict[str, dict[str, float]] = {}
    exact: Tensor | None = None

    def report(kind: str, hits: Hits, build: float, search: float) -> None:
        nonlocal exact
        exact = hits.ids[:, :10] if exact is None else exact
        same = (hits.ids[:, :10, None] == exact[:, None]).any(1).float().mean().item()
        run = found(hits.ids, hits.scores, names, queries)
        scores = measure(run, collection.judgements)
        low, high = bootstrap(scores["nDCG@10"])
        figures[kind] = {m: float(v.mean()) for m, v in scores.items()} | {
            "nDCG@10_low": low, "nDCG@10_high": high, "exact_ten": same, "build_seconds": build,
            "ms_per_query": 1000 * search / len(queries),
        }  # fmt: skip
        columns = "".join(f"{scores[m].mean():9.3f}" for m in MEASURES)
        print(
            f"{kind:16}{columns}   [{low:.3f}, {high:.3f}]{same:11.3f}{build:9.2f}{1000 * search / len(queries):10.2f}"
        )
        if runs is not None:
            write_run(runs / f"{name}-{kind.replace(' ', '-')}.run", run, kind.replace(" ", "-"))

    with tempfile.TemporaryDirectory() as folder:
        for kind, make in kinds(rows, Path(folder)).items():
            start = perf_counter()
            index = make()
            index.search(asked[:1], K)  # which builds what is built late
            built = perf_counter() - start
            start = perf_counter()
            parts = [index.search(part, K) for part in asked.split(32)]
            took = perf_counter() - start
            report(kind, Hits(torch.cat([p.ids for p in parts]), torch.cat([p.scores for p in parts])), built, took)
    start = perf_counter()
    sparse = BM25(texts)
    built = perf_counter() - start
    start = perf_counter()
    hits = sparse.search(questions, K)
    report("BM25", hits, built, perf_counter() - start)
    index, start = ExactIndex.of(rows), perf_counter()
    parts = [
        index.search(part, K, BETA * sparse.scores(words))
        for part, words in zip(
            asked.split(32), [questions[i : i + 32] for i in range(0, len(questions), 32)], strict=True
        )
    ]
    took = perf_counter() - start
    report("hybrid", Hits(torch.cat([p.ids for p in parts]), torch.cat([p.scores for p in parts])), built, took)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="Cranfield alone")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--runs", type=Path, help="a folder for TREC run files")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds cranfield/ and squad/")
    args = parser.parse_args()
    encoder = Encoder.load(resolve(RETRIEVER))
    collections = {"cranfield": cranfield(args.data / "cranfield")}
    if not args.quick:
        collections["squad"] = squad(args.data / "squad")
    figures = {name: compare(name, one, encoder, args.runs) for name, one in collections.items()}
    if args.json:
        write_file(args.json, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
