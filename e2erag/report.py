"""What the extractor does to a corpus, to look at: pages with gates and cuts, what it drops most, tokens saved."""

import html
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from e2erag.artefact import write_file
from e2erag.corpus import Corpus, Gates
from e2erag.extract.report import printable
from e2erag.rag import RAG
from e2erag.view import GATES, PageView, kept_above, look_at

BAR = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Dropped:
    """Lines that hard gates shut, counted together where they differ in their digits only.

    Attributes:
        count: how often such a line is dropped in the corpus, and `seen` how often it stands there.
        text: the most frequent form of it, of so many `forms`.
        gate: the larger of its two mean soft gates (finding, reading), and `kept_above` what it would have to exceed.
    """

    count: int
    seen: int
    text: str
    forms: int
    gate: float
    kept_above: float

    def __str__(self) -> str:
        seen = "" if self.count == self.seen else f" of {self.seen}"
        forms = "" if self.forms == 1 else f", in {self.forms} forms"
        gate = f"gate {self.gate:.2f}, kept above {self.kept_above:.2f}"
        return f"dropped {self.count}{seen} times: {self.text!r}{forms} ({gate})"


@dataclass(frozen=True)
class Saved:
    """What hard gates leave: tokens of lines, as the retriever counts them, and candidates per page.

    Attributes:
        lines, kept_lines: in the corpus, and those that at least one of finding and reading keeps.
        tokens, retrieve_tokens, read_tokens: of all lines, of those kept for finding and of those kept for reading.
        candidates: in the index; `per_page` their mean and their largest number that begin on one page.
    """

    lines: int
    kept_lines: int
    tokens: int
    retrieve_tokens: int
    read_tokens: int
    candidates: int
    per_page: tuple[float, int]

    def __str__(self) -> str:
        total = max(self.tokens, 1)
        return (
            f"{self.kept_lines} of {self.lines} lines kept; of {self.tokens} tokens {self.retrieve_tokens / total:.0%} "
            f"kept for finding, {self.read_tokens / total:.0%} for reading; {self.candidates} candidates, "
            f"{self.per_page[0]:.1f} a page, at most {self.per_page[1]}"
        )


@torch.no_grad()
def _gates(rag: RAG, corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Soft gates (finding, reading) of every line, and whether the threshold keeps it."""
    out, extractor = rag.model.gates(corpus, "soft").extraction, rag.model.extractor
    soft, hard = (
        torch.stack([extractor.log_gates(logits, mode) for logits in (out.retrieve, out.read)])
        for mode in ("soft", "hard")
    )
    return soft.exp().cpu().numpy(), hard.cpu().numpy() == 0


def _ready(rag: RAG) -> Corpus:
    if rag.corpus is None:
        raise RuntimeError("nothing is indexed yet: call index(files) first")
    return rag.corpus


def dropped(rag: RAG, most: int = 20) -> list[Dropped]:
    """The lines that neither finding nor reading keeps, those dropped most often first."""
    corpus = _ready(rag)
    soft, kept = _gates(rag, corpus)
    groups: dict[str, list[int]] = defaultdict(list)
    texts = [unit.text for document in corpus.documents for unit in document]
    for i, text in enumerate(texts):
        groups[re.sub(r"\d+", "0", text)].append(i)
    gone, bound = np.logical_not(kept.any(axis=0)), kept_above(rag.model.extractor, "read")
    rows = []
    for lines in groups.values():
        shut = [i for i in lines if gone[i]]
        if shut:
            here = Counter(texts[i] for i in shut)
            gate = float(soft[:, shut].mean(1).max())
            rows.append(Dropped(len(shut), len(lines), here.most_common(1)[0][0], len(here), gate, bound))
    return sorted(rows, key=lambda row: (-row.count, row.gate, row.text))[:most]


def saved(rag: RAG) -> Saved:
    """Lines, tokens and candidates that hard gates leave of what is indexed."""
    corpus = _ready(rag)
    _, kept = _gates(rag, corpus)
    tokens = corpus.retriever_lines.sizes[: len(corpus)]
    begins = corpus.page.numpy()[corpus.spans.spans[:, 1].numpy()]
    count = np.bincount(begins, minlength=int(corpus.page.max()) + 1)
    return Saved(
        len(corpus),
        int(kept.any(0).sum()),
        int(tokens.sum()),
        int(tokens[kept[0]].sum()),
        int(tokens[kept[1]].sum()),
        len(corpus.passages),
        (float(count.mean()), int(count.max())),
    )


def page_text(
    rag: RAG, file: str, page: int, colour: bool = False, every: Gates | None = None, gate: str = "read"
) -> str:
    """A page for the terminal: per line its two gates as bars (finding, reading) and its text; cuts as dashed lines.

    A line that hard gates drop is marked ×; `colour` dims it with ANSI codes. With `gate="carry"` a third bar is
    that of carrying."""
    names = ["retrieve", "read", *(["carry"] if gate == "carry" else [])]
    return "\n".join(_rows(look_at(rag, file, page, every), names, colour))


def _rows(view: PageView, names: list[str], colour: bool) -> list[str]:
    rows = [f"{view.document.name}, page {view.page.number}: {' | '.join(GATES[name] for name in names)}"]
    for i, unit in enumerate(view.page.units):
        if view.taken[i]:
            rows.append("     " + "- " * 30 + f"cut {view.cut[i]:.2f}")
        bars = "".join(BAR[min(int(view.gates[name][i] * 9), 8)] for name in names)
        text = f"{bars} {' ' if view.kept[i] else '×'} {unit.text}"
        rows.append(f"\x1b[2m{text}\x1b[0m" if colour and not view.kept[i] else text)
    return rows


def write_report(rag: RAG, folder: str | Path, pages: int = 3, gate: str = "read") -> Path:
    """A folder with `index.html`: what was saved, what was dropped most, and pages with gates, cuts and candidates.

    Args:
        folder: is made; files of the same names in it are replaced.
        pages: of each document, the first so many with lines.
        gate: that tints the lines, and stands beside them: "read", "retrieve" or "carry".

    Returns:
        the page to open.

    Raises:
        ImportError: Pillow (extra `draw`) isn't installed.
    """
    from e2erag.draw import draw_page

    corpus, folder = _ready(rag), Path(folder)
    with torch.no_grad():
        every = rag.model.gates(corpus, "soft")
    body = [f"<h1>What the extractor keeps</h1><p>{html.escape(str(saved(rag)))}</p>"]
    rows = dropped(rag)
    body.append("<h2>Dropped most often</h2>")
    items = "".join(f"<li>{html.escape(str(row))}</li>" for row in rows)
    body.append(f"<ul>{items}</ul>" if items else "<p>No line is dropped.</p>")
    for number, document in enumerate(corpus.documents, 1):
        body.append(
            f"<h2>{html.escape(printable(document.name))}</h2><p>{len(document.pages)} pages, {len(document)} lines</p>"
        )
        body += [f"<p>page {n} was not read: {html.escape(why)}</p>" for n, why in document.unread.items()]
        for page in [page for page in document.pages if page.units][:pages]:
            name = f"{number:04}-{page.number:04}.png"
            draw_page(rag, document.file, page.number, folder / name, gate=gate, every=every)
            body.append(f'<figure><img src="{name}" width="680" alt="page {page.number}"></figure>')
    style = "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}img{border:1px solid #ccc}"
    bound = f"hard gates keep a line above {kept_above(rag.model.extractor, gate):.2f}"
    legend = (
        f"Lines by their soft gates for {GATES[gate]}, from green (1, as at the start) to red (0); {bound}. "
        "Dashed: a cut. Brackets: candidates, darker where likelier, open where they go on on another page, orange "
        "where they put a table as rows or as sentences."
    )
    write_file(
        folder / "index.html",
        "<!doctype html><meta charset=utf-8><title>What the extractor keeps</title>"
        f"<style>{style}</style>{''.join(body[:1])}<p>{legend}</p>{''.join(body[1:])}\n",
    )
    return folder / "index.html"
