"""Reading PDFs: whether the words are right, and how long it takes, page by page in one run.

    python benchmarks/extraction.py [FOLDER | PDF ...] [--quick] [--json FILE]

    word_f1           words of the pypdf engine against those of PDFium's own text, one bag per page, over the
                      born-digital pages that are mapped: those where it finds 20 words or more, not mostly
                      invisible ones (OCR), and says of each character that it could be mapped (of glyphs of TeX's fonts
                      it shows the codes). Without accents, which it leaves beside the letter where a file draws them so
    raw_word_f1       the same over all born-digital pages, accents and all
    letters_f1        raw_word_f1 over letters: what is not a matter of where a word ends
    engines_f1        the pypdf engine's words against the pypdfium2 engine's, over all born-digital pages
    pypdf_time_ratio  time of the pypdf engine up to lines, over that of pypdf's `extract_text` of the same pages
    fast_speedup      time of the pypdf engine over that of the pypdfium2 engine, both up to lines
    cache_speedup     time to read files the first time over that of the second, from the cache

Without folders it takes those of ../shared/data, or examples/ntsb where there are none; where there is no such page it
stops. Times are processor time of one thread; the engines take turns on every page. On both sides words are taken as
`lines.clean` gives them: single-spaced, ligatures opened, dot leaders dropped.
"""

import argparse
import math
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import pypdf
import pypdfium2
import pypdfium2.raw as pdfium
from figures import write_figures

from e2erag.extract import ReadError, read_many
from e2erag.extract.readers.columns import unwoven
from e2erag.extract.readers.lines import clean, join
from e2erag.extract.readers.pdf_pdfium import PdfiumFile
from e2erag.extract.readers.pdf_pypdf import PypdfFile
from e2erag.extract.readers.shown import Shown

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
FOLDERS = ("pdfqa_sec10q/docs", "pdfqa_ntsb/docs", "pdf_misc/pdfs", "pdf_fed", "pdf_nih")
QUICK_PAGES = 4  # of each file, spread evenly
QUICK_FILES = 6  # read twice for the cache
BORN_DIGITAL = 20  # words
INVISIBLE = 3  # text rendering mode

ACCENTS = re.compile(r"(?<=[A-Za-zıȷ])[\u0300-\u036f]+|[ˆˇ˘˙˚˛˜˝¨¯´¸]")
DOTLESS = str.maketrans("ıȷ", "ij")

Bag = Counter[str]


@dataclass
class Tally:
    """Sums over pages; `common`, `ours` and `theirs` count words, by what is compared."""

    pages: int = 0
    digital: int = 0
    mapped: int = 0
    seconds: Bag = field(default_factory=Counter)
    common: Bag = field(default_factory=Counter)
    ours: Bag = field(default_factory=Counter)
    theirs: Bag = field(default_factory=Counter)
    missing: Bag = field(default_factory=Counter)
    extra: Bag = field(default_factory=Counter)

    def compare(self, name: str, ours: Bag, theirs: Bag) -> None:
        self.common[name] += (ours & theirs).total()
        self.ours[name] += ours.total()
        self.theirs[name] += theirs.total()

    def f1(self, name: str) -> float:
        return 2 * self.common[name] / both if (both := self.ours[name] + self.theirs[name]) else math.nan

    def add(self, other: "Tally") -> None:
        self.pages += other.pages
        self.digital += other.digital
        self.mapped += other.mapped
        for name in ("seconds", "common", "ours", "theirs"):
            getattr(self, name).update(getattr(other, name))

    def figures(self) -> dict[str, float]:
        seconds = self.seconds
        return {
            "pages": self.pages,
            "born_digital": self.digital,
            "mapped": self.mapped,
            "word_f1": self.f1("pypdf"),
            "fast_word_f1": self.f1("pypdfium2"),
            "raw_word_f1": self.f1("raw"),
            "letters_f1": self.f1("letters"),
            "engines_f1": self.f1("engines"),
            "pypdf_time_ratio": seconds["pypdf"] / max(seconds["extract_text"], 1e-9),
            "fast_speedup": seconds["pypdf"] / max(seconds["pypdfium2"], 1e-9),
            "pypdf_ms": 1000 * seconds["pypdf"] / max(self.pages, 1),
            "fast_ms": 1000 * seconds["pypdfium2"] / max(self.pages, 1),
        }


def lines(shown: Shown) -> list[str]:
    return [line.unit(1, 1).text for line in unwoven(join(shown.runs)) if line.text]


def words(text: str) -> Bag:
    return Counter(clean(text).split())


def bare(words: Bag) -> Bag:
    """The same words without accents, be they part of a letter or by themselves, and with dots on ı and ȷ."""
    found: Bag = Counter()
    for word, count in words.items():
        found[ACCENTS.sub("", unicodedata.normalize("NFD", word)).translate(DOTLESS)] += count
    del found[""]  # an accent by itself
    return found


def letters(text: str) -> Bag:
    return Counter("".join(clean(text).split()))


def invisible(page: pypdfium2.PdfPage) -> bool:
    """Whether most of the page's text objects are drawn in no colour."""
    objects = list(page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_TEXT], max_depth=3))
    hidden = sum(pdfium.FPDFTextObj_GetTextRenderMode(text.raw) == INVISIBLE for text in objects)
    return 2 * hidden > len(objects)


def is_mapped(page: pypdfium2.PdfPage) -> bool:
    """Whether PDFium could map all of its characters."""
    text = page.get_textpage()
    return not any(pdfium.FPDFText_HasUnicodeMapError(text.raw, i) == 1 for i in range(text.count_chars()))


def own_text(page: pypdfium2.PdfPage) -> str:
    """PDFium's text; it marks a hyphen at a line's end, and leaves the line's end out."""
    return str(page.get_textpage().get_text_range()).replace("\ufffe", "-\n")


def measured(file: Path, most: int | None) -> Tally:
    """One file's pages, or `most` of them."""
    data, tally = file.read_bytes(), Tally()
    with PypdfFile(file, data) as slow, PdfiumFile(file, data) as fast, pypdfium2.PdfDocument(data) as other:
        plain = pypdf.PdfReader(file)
        if plain.is_encrypted:
            plain.decrypt("")
        count = len(slow)
        numbers = range(1, count + 1) if most is None else sorted({1 + i * count // most for i in range(most)})
        for number in numbers:
            steps: dict[str, Callable[[int], Any]] = {
                "pypdf": lambda number: lines(slow.shown(number)),
                "extract_text": lambda number: plain.pages[number - 1].extract_text(),
                "pypdfium2": lambda number: lines(fast.shown(number)),
            }
            found: dict[str, Any] = {}
            for name in sorted(steps, reverse=bool(number % 2)):
                start = process_time()
                found[name] = steps[name](number)
                tally.seconds[name] += process_time() - start  # type: ignore[assignment]
            tally.pages += 1
            page = other[number - 1]
            text = own_text(page)
            theirs = words(text)
            if theirs.total() >= BORN_DIGITAL and not invisible(page):
                tally.digital += 1
                ours, fast_ours = (words("\n".join(found[name])) for name in ("pypdf", "pypdfium2"))
                if is_mapped(page):
                    tally.mapped += 1
                    one, other_one, truth = bare(ours), bare(fast_ours), bare(theirs)
                    tally.compare("pypdf", one, truth)
                    tally.compare("pypdfium2", other_one, truth)
                    tally.missing += truth - one
                    tally.extra += one - truth
                tally.compare("raw", ours, theirs)
                tally.compare("engines", ours, fast_ours)
                tally.compare("letters", letters("\n".join(found["pypdf"])), letters(text))
    return tally


def cached(files: list[Path]) -> float:
    """How much faster the same files are read a second time, with a cache that was empty the first time."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            start = perf_counter()
            list(read_many(files, cache=folder))
            seconds.append(perf_counter() - start)
    return seconds[0] / seconds[1]


def folders(named: list[Path]) -> Iterator[tuple[str, list[Path]]]:
    """What to read, by folder."""
    if not named and not SHARED.is_dir():
        print(f"{SHARED} is not there: taking examples/ntsb")
        named = [ROOT / "examples" / "ntsb"]
    for folder in named or [SHARED / name for name in FOLDERS]:
        inside = [folder] if folder.is_file() else folder.rglob("*")
        files = sorted(path for path in inside if path.suffix.lower() == ".pdf")
        if files:
            yield str(folder.relative_to(SHARED) if folder.is_relative_to(SHARED) else folder), files
        else:
            print(f"{folder}: no PDF")


def shown_row(name: str, figures: dict[str, float]) -> None:
    cells = ("–" if math.isnan(value) else f"{value:.{4 * (value % 1 > 0)}f}" for value in figures.values())
    print(f"{name[-34:]:34}", *(f"{cell:>16}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="PDFs, or folders of them")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PAGES} pages of each file")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    total, worst, by_folder = Tally(), [], {}
    chosen = list(folders(options.folders))
    print(f"{'':34}", *(f"{name:>16}" for name in Tally().figures()))
    for name, files in chosen:
        sums = Tally()
        for file in files:
            try:
                tally = measured(file, QUICK_PAGES if options.quick else None)
            except (ReadError, pypdfium2.PdfiumError) as error:
                print(f"left out: {file.name}: {getattr(error, 'reason', error)}")
                continue
            sums.add(tally)
            if tally.mapped:
                worst.append((tally.f1("pypdf"), file.name, tally))
        by_folder[name] = sums.figures()
        shown_row(name, by_folder[name])
        total.add(sums)
    if not total.digital:
        named = ", ".join(map(str, options.folders)) or "what it takes by itself"
        raise SystemExit(
            f"there is nothing to compare: of {named} {total.pages} pages could be read, none of them with "
            f"{BORN_DIGITAL} words or more; name PDFs with text, or folders of them"
        )
    figures = total.figures()
    shown_row("all", figures)
    print("\nworst files: F1, words that only PDFium has, words that only the pypdf engine has")
    for f1, name, tally in sorted(worst, key=lambda row: row[0])[:8]:
        print(f"{f1:.4f} {name[:40]:40} {_most(tally.missing)} | {_most(tally.extra)}")
    some = [file for _, files in chosen for file in files][: QUICK_FILES if options.quick else None]
    figures["cache_speedup"] = cached(some)
    print()
    scores = ("word_f1", "raw_word_f1", "letters_f1", "engines_f1")
    for name in (*scores, "pypdf_time_ratio", "fast_speedup", "cache_speedup"):
        print(f"{name:20} {figures[name]:.4f}")
    if options.json:
        write_figures(options.json, {**figures, "folders": by_folder})


def _most(bag: Bag) -> str:
    return " ".join(f"{word[:24]}×{count}" for word, count in bag.most_common(4))


if __name__ == "__main__":
    main()
