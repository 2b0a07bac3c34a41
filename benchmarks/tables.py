"""Tables found on printed pages against what was printed: where, which cells, which header; and where there is none.

    python benchmarks/tables.py [FOLDER] [--quick] [--json FILE] [--half odd|even]

Prints tables of WikiTableQuestions in several styles with prose around them, reads them back and finds them. Rules were
made on the even half; report the odd one.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from random import Random
from time import perf_counter

from table_pdf import FOLDER, STYLES, Printed, render, tables

from e2erag.extract import Document, Page, read
from e2erag.extract.tables import Table, as_rows, as_sentences, find_tables

WORDS = (
    "the of and to in a was for on as by with that from at is it were which an be this their are or had first not its"
    " season table results following listed below year company team record total between during several other since"
).split()


def prose(seed: int) -> Iterator[str]:
    """Lines of made-up text as wide as the page."""
    rng = Random(seed)
    for _ in count():
        yield " ".join(rng.choice(WORDS) for _ in range(24)).capitalize()


def overlap(table: Table, gold: tuple[int, int]) -> float:
    both = min(table.stop, gold[1]) - max(table.start, gold[0])
    return max(both, 0) / (max(table.stop, gold[1]) - min(table.start, gold[0]))


def place(page: Page, printed: Printed) -> tuple[int, int]:
    """The units that stand within a printed table."""
    inside = [i for i, u in enumerate(page.units) if printed.top < (u.box.y0 + u.box.y1) / 2 < printed.bottom]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def neighbours(rows: tuple[tuple[str, ...], ...]) -> Counter:
    """Pairs of cells next to each other in a row or in a column, empty ones passed over."""
    pairs: Counter = Counter()
    for way, lines in (("row", rows), ("column", list(zip(*rows, strict=True)))):
        for line in lines:
            filled = [cell for cell in line if cell]
            pairs.update((way, a, b) for a, b in pairwise(filled))
    return pairs


def cells(rows: tuple[tuple[str, ...], ...]) -> Counter:
    return Counter((r, c, cell) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell)


def score(document: Document, printed: list[Printed], into: Counter) -> None:
    """Adds a document's counts: tables printed, found and right, cells and neighbours that agree, headers."""
    for page in document.pages:
        start = perf_counter()
        found = list(find_tables(page))
        into["seconds"] += perf_counter() - start
        into["pages"] += 1
        golds = [gold for gold in printed if gold.page == page.number]
        into["found"] += len(found)
        into["printed"] += len(golds)
        for gold in golds:
            span = place(page, gold)
            best = max(found, key=lambda table: overlap(table, span), default=None)
            right = best is not None and overlap(best, span) >= 0.8
            into["right"] += right
            for name, count_of in (("cells", cells), ("neighbours", neighbours)):
                want = count_of(gold.rows)
                have = count_of(best.rows) if best and overlap(best, span) > 0.1 else Counter()
                into[f"{name} both"] += (want & have).total()
                into[f"{name} sum"] += want.total() + have.total()
            if right and best is not None:
                into["headers right"] += best.header == gold.header
                into["rows right"] += len(best.rows) == len(gold.rows)
                assert len(as_rows(best)) == len(as_sentences(best)) == best.stop - best.start


def shares(counts: Counter) -> dict[str, float]:
    return {
        "tables": counts["printed"],
        "precision": counts["right"] / max(counts["found"], 1),
        "recall": counts["right"] / max(counts["printed"], 1),
        "cell F1": 2 * counts["cells both"] / max(counts["cells sum"], 1),
        "neighbour F1": 2 * counts["neighbours both"] / max(counts["neighbours sum"], 1),
        "header": counts["headers right"] / max(counts["right"], 1),
        "row count": counts["rows right"] / max(counts["right"], 1),
        "ms per page": 1000 * counts["seconds"] / max(counts["pages"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="holds csv.tar.gz")
    parser.add_argument("--quick", action="store_true", help="40 tables per style")
    parser.add_argument("--half", choices=["even", "odd"], default="odd", help="which tables")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    try:
        named = tables(options.folder)[options.half == "odd" :: 2]
    except FileNotFoundError as error:
        parser.exit(2, f"{error}\n")
    Random(0).shuffle(named)
    named = named[: 40 if options.quick else 250]
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for style in STYLES:
            counts: Counter = Counter()
            for seed, table in enumerate(named):
                data, printed = render(table.rows, prose(seed), style, seed, table.header)
                file = Path(folder) / "table.pdf"
                file.write_bytes(data)
                score(read(file), printed, counts)
            figures[style] = shares(counts)
    counts = Counter()
    for file in sorted((Path(__file__).parents[1] / "examples/ntsb").glob("*.pdf")):
        score(read(file), [], counts)
    figures["reports"] = {"tables per page": counts["found"] / max(counts["pages"], 1)}
    print(f"{'':18}" + "".join(f"{name:>14}" for name in figures[STYLES[0]]))
    for style in STYLES:
        print(f"{style:18}" + "".join(f"{value:14.3f}" for value in figures[style].values()))
    print(f"accident reports: {figures['reports']['tables per page']:.2f} tables (label and value) per page")
    if options.json:
        options.json.write_text(json.dumps({"half": options.half, **figures}, indent=1))


if __name__ == "__main__":
    main()
