"""What extractors that `extractor_learns.py` has trained drop of documents that they never saw.

    python benchmarks/dropped.py [--quick] [--json FILE] [--seeds 0 1 2] [--corpus squad | reports] [--out FOLDER]
                                 [--top 5] [FOLDER ...]

`--out` is what that script was told, and its settings are the usual ones of `--corpus`. Every FOLDER is indexed by
itself with hard gates: how many lines and tokens are kept, and the lines that are dropped most often. Without one these
are the accident reports of examples/ntsb. With `--quick` an extractor is first trained on a few questions, where there
is none.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from extractor_learns import QUICK, REPORTS, Size, place, system
from figures import write_figures
from safetensors.torch import load_file

from e2erag.extract import Document, read_many
from e2erag.report import dropped, saved

NTSB = Path(__file__).parents[1] / "examples" / "ntsb"


def trained(out: Path, size: Size, seeds: Sequence[int], quick: bool) -> dict[int, Path]:
    """Every seed's trained extractor; what is missing is trained where that is `quick`, and else said."""
    found = {seed: place(out, size) / f"extractor-{seed}" / "extractor.safetensors" for seed in seeds}
    again = [
        str(Path(__file__).with_name("extractor_learns.py")), "--corpus", size.corpus, "--arms", "extractor",
        "--out", str(out), "--seeds", *map(str, seeds),
    ]  # fmt: skip
    if quick and not all(path.is_file() for path in found.values()):
        subprocess.run([sys.executable, *again, "--quick"], check=True, stdout=subprocess.DEVNULL)
    if missing := [str(path) for path in found.values() if not path.is_file()]:
        raise SystemExit(f"nothing is trained at {', '.join(missing)}: first run python {' '.join(again)}")
    return found


def documents(folder: Path, most: int | None) -> list[Document]:
    """What can be read in a folder, of the first `most` files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())[:most]
    return read_many(files)[0]


def drops(extractor: Path, seed: int, size: Size, corpora: dict[str, list[Document]], top: int) -> dict[str, Any]:
    """By corpus what is kept, and the lines dropped most often."""
    rag = system(seed, size, None)
    rag.model.extractor.load_state_dict(load_file(extractor))
    rag.config = replace(rag.config, mode="hard")
    figures: dict[str, Any] = {}
    for name, read in corpora.items():
        if not read:
            print(f"\n{name}: nothing in it can be read")
            continue
        rag.index(read)
        kept, rows = saved(rag), dropped(rag, top)
        print(f"\nseed {seed}, {name} ({len(read)} documents): {kept}")
        print("\n".join(f"  {row}" for row in rows))
        figures[name] = {"documents": len(read), **asdict(kept), "dropped": [asdict(row) for row in rows]}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[NTSB])
    parser.add_argument("--corpus", choices=("squad", "reports"), default="squad")
    parser.add_argument("--quick", action="store_true", help="two documents a folder, one seed: only that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/extractor_learns"))
    parser.add_argument("--top", type=int, default=5, help="lines to name")
    options = parser.parse_args()
    size = REPORTS if options.corpus == "reports" else Size()
    if options.quick:
        size, options.seeds = replace(QUICK, corpus=options.corpus), options.seeds[:1]
    of = trained(options.out, size, options.seeds, options.quick)
    corpora = {str(folder): documents(folder, 2 if options.quick else None) for folder in options.folders}
    figures = {seed: drops(of[seed], seed, size, corpora, options.top) for seed in options.seeds}
    if options.json:
        write_figures(options.json, figures)


if __name__ == "__main__":
    main()
