"""Search, log Z and stores against bare torch and bare faiss, in one run.

    python benchmarks/retrieval.py [--quick] [--json figures.json] [--plot cost.png]

Each ratio is the median over interleaved rounds of ours / bare, on the same rows, queries and number of threads. Rows
are unit vectors around N/20 centres (texts come in topics; rows without structure have no neighbours worth the name),
with a last component for the prior. Figures:

    search_ratio        exact search / bare torch (product and topk), the worst over sizes
    logz_ratio          exact search with log Z / the same
    faiss_ratio         FaissIndex.search / bare faiss doing the same on the same structure, the worst over kinds from
                        10⁵ rows on (below, a search takes milliseconds, and a tenth of one shows: faiss_ratio_small).
                        Of compressed rows, whose hits are scored anew, the same is IndexRefine over the structure and
                        float32 rows, which bare faiss holds in memory; against the structure alone: last column
    peak_over_vectors   what a streaming build, an exact search, rows added in memory and the building of faiss'
                        structures each add to a process' peak memory / the stored vectors, the worst from 10⁵ rows on
    encode_ratio        passages/s of our encoder / SentenceTransformer.encode (benchmarks/encoding.py)
    step_growth         a training step over the largest corpus / over the smallest that has more lines than the
                        extractor judges of pages drawn; step_growth_whole: judging every line. Models are tiny, so that
                        what grows shows
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import faiss
import torch
from encoding import SLICE, encode_ratio
from rounds import interleaved, over, seconds

from e2erag.config import RAGConfig
from e2erag.extract import ExtractorConfig
from e2erag.indexing import AT_ONCE
from e2erag.questions import Question
from e2erag.retriever import ExactIndex, FaissIndex, Source, Store
from e2erag.retriever.approximate import KINDS, _padded
from e2erag.retriever.sampled import RESCORED
from e2erag.testing import WORDS, tiny_document, tiny_rag
from e2erag.train import marginal

DIM, QUESTIONS, K = 384, 32, 16
BATCH = 8192
LINES, JUDGED = 40, 4096
"""Lines of a page, and those that the extractor judges in a step, where a step's cost is measured."""


def rows(n: int, start: int = 0, topics: int | None = None) -> torch.Tensor:
    """Rows start … start + n of one corpus, the same whenever they are asked for."""
    centres = torch.randn((topics or n) // 20, DIM, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1 + start)
    unit = torch.nn.functional.normalize(
        centres[torch.randint(len(centres), (n,), generator=g)] + torch.randn(n, DIM, generator=g), dim=1
    )
    return torch.cat([unit, -torch.rand(n, 1, generator=g)], 1)


def asked(corpus: torch.Tensor) -> torch.Tensor:
    """Questions near some of the rows, at temperature .05."""
    g = torch.Generator().manual_seed(2)
    near = corpus[torch.randint(len(corpus), (QUESTIONS,), generator=g), :-1].float()
    unit = torch.nn.functional.normalize(near + 0.5 * torch.randn(QUESTIONS, DIM, generator=g) / DIM**0.5, dim=1)
    return torch.cat([20 * unit, torch.ones(QUESTIONS, 1)], 1)


def against(bare: Callable[[], Any], ours: Sequence[Callable[[], Any]], rounds: int) -> tuple[float, list[float]]:
    """Seconds of the bare way, and of each of ours the median ratio to the bare one of the same round."""
    names = [str(i) for i in range(len(ours))]
    times = interleaved({"bare": bare, **dict(zip(names, ours, strict=True))}, rounds)
    return statistics.median(times["bare"]), [over(times, name, "bare") for name in names]


def exact(sizes: Sequence[int], rounds: int) -> dict[str, float]:
    """Search and log Z against bare torch, by size."""
    print(f"\nexact search, {QUESTIONS} questions, K = {K}, {torch.get_num_threads()} threads")
    print(f"{'rows':>10} {'bare ms':>9} {'search':>7} {'+ log Z':>8} {'+ gradient':>11} {'float16':>8}")
    worst = {"search_ratio": 0.0, "logz_ratio": 0.0}
    for n in sizes:
        corpus = rows(n)
        queries, index = asked(corpus), ExactIndex.of(corpus)
        half = Store(dtype=torch.float16)
        half.add([Source("a", "", n)], corpus)
        narrow, learned = ExactIndex(half), queries.clone().requires_grad_()
        bare, ratios = against(
            lambda corpus=corpus, queries=queries: (queries @ corpus.T).topk(K),
            [
                lambda index=index, queries=queries: index.search(queries, K),
                lambda index=index, queries=queries: index.log_z(queries, index.search(queries, K)),
                lambda index=index, learned=learned: index.log_z(learned, index.search(learned, K)).sum().backward(),
                lambda index=narrow, queries=queries: index.search(queries, K),
            ],
            rounds,
        )
        print(f"{n:>10,} {1000 * bare:>9.1f} {ratios[0]:>7.2f} {ratios[1]:>8.2f} {ratios[2]:>11.2f} {ratios[3]:>8.2f}")
        worst = {
            "search_ratio": max(worst["search_ratio"], ratios[0]),
            "logz_ratio": max(worst["logz_ratio"], ratios[1]),
        }
    return worst


def approximate(n: int, kinds: Sequence[str], rounds: int) -> float:
    """Every kind of faiss: what it takes to build, recall, error of log Z; returns the worst ratio to bare faiss."""
    print(f"\nfaiss, {n:,} rows")
    print(
        f"{'kind':>6} {'build s':>8} {'MB':>7} {'recall@10':>10} {'log Z error':>12} {'bare ms':>8} {'ratio':>6} "
        f"{'over the structure':>19}"
    )
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for start in range(0, n, 10 * BATCH):
            size = min(10 * BATCH, n - start)
            store.add([Source(str(start), "", size)], rows(size, start, n))
        queries, true = asked(store.rows), ExactIndex(store)
        best = true.search(queries, 10)
        log_z = true.log_z(queries, best)
        for kind in kinds:
            index = FaissIndex(store, kind)
            built = seconds(lambda index=index: index.search(queries, 10))
            found = index.search(queries, 10)
            recall = (found.ids[:, :, None] == best.ids[:, None]).any(1).float().mean()
            error = (index.log_z(queries, index.search(queries, 6 * K)) - log_z).abs().mean()
            structure = index.faiss
            padded = _padded(queries.numpy(), structure.d)
            arms = {
                "ours": lambda index=index: index.search(queries, 10),
                "structure": lambda structure=structure, padded=padded: structure.search(padded, 10),
            }
            same = "structure"
            if KINDS[kind].compressed:
                same, refined = "refined", refine(structure, store)
                arms[same] = lambda refined=refined, padded=padded: refined.search(padded, 10)
            times = interleaved(arms, rounds)
            (file,) = Path(folder).glob(f"{kind}-*.faiss")
            ratios.append(over(times, "ours", same))
            print(
                f"{kind:>6} {built:>8.1f} {file.stat().st_size / 1e6:>7.0f} {recall:>10.3f} {error:>12.3f} "
                f"{1000 * statistics.median(times[same]):>8.2f} {ratios[-1]:>6.2f} "
                f"{over(times, 'ours', 'structure'):>19.2f}"
            )
    return max(ratios)


def refine(structure: Any, store: Store) -> Any:
    """Bare faiss that scores as many of a structure's hits anew as `FaissIndex` does, from rows in memory."""
    flat: Any = faiss.IndexFlatIP(structure.d)
    for start in range(0, len(store.rows), BATCH):
        flat.add(_padded(store.rows[start : start + BATCH].numpy(), structure.d))
    refined: Any = faiss.IndexRefine(structure, flat)
    refined.k_factor, refined.referenced_objects = RESCORED, [structure, flat]  # faiss holds none to them
    return refined


def batches(n: int, size: int = BATCH) -> list[list[Source]]:
    """Documents of 64 passages, a batch of them at a time."""
    return [
        [Source(f"{start + i}", "x", min(64, n - start - i)) for i in range(0, min(size, n - start), 64)]
        for start in range(0, n, size)
    ]


def made(n: int) -> Callable[[Sequence[Source]], torch.Tensor]:
    """What stands for an encoder: rows of a corpus of n."""
    return lambda new: rows(sum(source.passages for source in new), int(new[0].name), n)


def changes(n: int) -> tuple[float, float, float, float, float]:
    """Seconds to build a corpus of n rows, to refresh it, to add and to delete a document of 64, and to search."""
    with tempfile.TemporaryDirectory() as folder:
        index = ExactIndex(Store(folder, torch.float16))
        build = seconds(lambda: index.store.build(batches(n), made(n), {"made of": "rows"}))
        refresh = seconds(lambda: index.store.build(batches(n), made(n), {"made of": "rows of other weights"}))
        new = [rows(64, n + i, n) for i in range(5)]
        add = [seconds(lambda i=i: index.add([Source(f"new {i}", "x", 64)], new[i])) for i in range(5)]
        delete = [seconds(lambda i=i: index.delete([f"new {i}"])) for i in range(5)]
        queries = asked(index.vectors)
        index.search(queries, K)
        search = [seconds(lambda: index.search(queries, K)) for _ in range(3)]
    return build, refresh, statistics.median(add), statistics.median(delete), statistics.median(search)


def step(lines: int) -> tuple[int, float, float]:
    """Candidates of a corpus of so many lines; seconds of a training step that judges every line, or pages drawn."""
    words = Random(0)
    pages = [[" ".join(words.choices(WORDS, k=6)) for _ in range(LINES)] for _ in range(lines // LINES)]
    rag = tiny_rag(extractor=ExtractorConfig(text_dim=32, sizes=(8,), kinds=()), config=RAGConfig(mode="soft"))
    rag.index([tiny_document(pages[i : i + 25], f"{i}.pdf") for i in range(0, len(pages), 25)])
    questions = [Question(" ".join(words.choices(WORDS, k=6)), (words.choice(WORDS),)) for _ in range(8)]

    def learn(judged: int) -> float:
        with rag.model.extractor.learning():
            return seconds(lambda: marginal(rag.terms(questions, 4, "soft", judged=judged)).mean().backward())

    times = [[learn(judged) for judged in (0, JUDGED)] for _ in range(4)][1:]
    whole, drawn = (statistics.median(column) for column in zip(*times, strict=True))
    return len(rag.corpus.passages), whole, drawn


def steps(sizes: Sequence[int]) -> list[tuple[int, float, float]]:
    """Candidates, and what a training step costs, by the corpus' size."""
    print(f"\na training step of 8 questions, tiny models; the extractor judges every line, or {JUDGED:,} drawn")
    print(f"{'lines':>10} {'candidates':>11} {'every line s':>13} {'drawn s':>8}")
    table = []
    for lines in sizes:
        table.append(step(lines))
        print(f"{lines:>10,} {table[-1][0]:>11,} {table[-1][1]:>13.2f} {table[-1][2]:>8.2f}")
    return table


def cost(sizes: Sequence[int]) -> list[tuple[float, ...]]:
    """Rows, and what a build, a refresh, one more document, one less, and a search cost, by the corpus' size."""
    print("\nstore in a folder, float16")
    print(
        f"{'rows':>10} {'build s':>8} {'rows/s':>10} {'refresh s':>10} {'add ms':>7} {'delete ms':>10} "
        f"{'search ms':>10}"
    )
    table = []
    for n in sizes:
        build, refresh, add, delete, search = changes(n)
        table.append((n, build, refresh, add, delete, search))
        print(
            f"{n:>10,} {build:>8.2f} {n / build:>10,.0f} {refresh:>10.2f} {1e3 * add:>7.1f} {1e3 * delete:>10.1f} "
            f"{1e3 * search:>10.1f}"
        )
    return table


def draw(table: Sequence[tuple[float, ...]], learned: Sequence[tuple[int, float, float]], plot: Path) -> None:
    """Cost over size: an index', and a training step's over the candidates of its corpus."""
    from matplotlib import pyplot

    n, *columns = zip(*table, strict=True)
    names = ("build", "refresh", "add 64 rows", "delete 64 rows", f"search, {QUESTIONS} questions")
    for name, column in zip(names, columns, strict=True):
        pyplot.loglog(n, column, marker="o", label=name)
    candidates, _, seconds_ = zip(*learned, strict=True)
    pyplot.loglog(candidates, seconds_, marker="s", linestyle="--", label="a training step of tiny models")
    pyplot.xlabel("rows")
    pyplot.ylabel("seconds")
    pyplot.legend()
    pyplot.savefig(plot, dpi=100, bbox_inches="tight")


def peak(n: int, chosen: Sequence[str]) -> float:
    """The peak memory that these steps add, each in a fresh process, over the stored vectors; the most."""
    steps = {step: torch.float16 if step == "half" else torch.float32 for step in chosen}
    added = {}
    print(f"\npeak memory that a step adds, over the bytes of {n:,} stored rows")
    with tempfile.TemporaryDirectory() as folder:
        for step, dtype in steps.items():
            command = [sys.executable, __file__, "--peak", step, str(n), folder]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            added[step] = int(run.stdout.split()[-1]) / (dtype.itemsize * (DIM + 1) * n)
            print(f"{step:>10} {added[step]:.2f}")
    return max(added.values())


def peak_of(step: str, n: int, folder: str) -> None:
    """Print the bytes that a step adds to this process' peak; a mapped file's pages count once they are read.

    "build" and "search" in a folder, built a batch at a time; "memory" and "half" add batches to a store in memory, in
    float32 and in float16; a kind of faiss builds its structure over the rows in the folder."""
    ExactIndex.of(rows(1000)).search(asked(rows(1000)), K)  # libraries allocate what is theirs at first use
    queries = asked(rows(1000))
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = status("VmRSS")

    def plain(new: Sequence[Source]) -> torch.Tensor:
        """Rows whose making takes no memory beside them."""
        vectors = torch.randn(sum(source.passages for source in new), DIM + 1)
        return vectors.div_(vectors.norm(dim=1, keepdim=True))

    if step == "build":
        Store(folder).build(batches(n, AT_ONCE), plain, {"made of": "rows"})
    elif step == "search":
        index = ExactIndex.load(folder)
        index.log_z(queries, index.search(queries, K))
    elif step in KINDS:  # what centroids are learned from is read in portions
        FaissIndex(Store.open(folder, verify=False), step, str).search(queries, K)
    else:
        store = Store(dtype=torch.float16 if step == "half" else torch.float32)
        for batch in batches(n, AT_ONCE):
            store.add(batch, plain(batch))
    print(status("VmHWM") - before)


def status(entry: str) -> int:
    """An entry of this process' status, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry)]
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 10⁵ rows: two minutes, nearer three on a slow core")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--plot", type=Path, help="draw cost over size (needs matplotlib)")
    parser.add_argument("--threads", type=int, help="of torch and faiss; all if not given")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)  # a step in its own process
    args = parser.parse_args()
    if args.peak:
        return peak_of(args.peak[0], int(args.peak[1]), args.peak[2])
    if args.threads:
        torch.set_num_threads(args.threads)
        faiss.omp_set_num_threads(args.threads)
    sizes = [10**4, 10**5] if args.quick else [10**4, 10**5, 10**6]
    rounds = 7 if args.quick else 15
    figures = exact(sizes, rounds)
    # Over 10⁶ rows one core takes a quarter of an hour and more to build HNSW.
    kinds = {10**4: list(KINDS), 10**5: list(KINDS), 10**6: [kind for kind in KINDS if kind != "HNSW"]}
    if args.quick:
        kinds = {10**4: ["Flat", "IVF", "SQ"], 10**5: ["Flat", "IVF"]}
    ratios = {n: approximate(n, some, rounds) for n, some in kinds.items()}
    figures["faiss_ratio_small"] = ratios[min(ratios)]
    figures["faiss_ratio"] = max(ratio for n, ratio in ratios.items() if n >= 10**5)
    lines = [5 * 10**3, 10**4] if args.quick else [10**3, 10**4, 10**5]
    costs, learned = cost(sizes), steps(lines)
    if args.plot:
        draw(costs, learned, args.plot)
    (_, *first), *_, (_, *last) = [row for row, count in zip(learned, lines, strict=True) if count > JUDGED]
    figures["step_growth_whole"], figures["step_growth"] = (b / a for a, b in zip(first, last, strict=True))
    plain = ["build", "search", "memory", "half"]
    figures["peak_over_vectors"] = peak(10**5, ["build", "half", "SQ"] if args.quick else [*plain, *KINDS])
    if not args.quick:
        figures["peak_over_vectors"] = max(figures["peak_over_vectors"], peak(10**6, [*plain, "SQ"]))
    figures |= encode_ratio(SLICE if args.quick else 5000, args.threads)
    print("\n" + json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
