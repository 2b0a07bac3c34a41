"""Which lines an answer rests on: those that hold its words and, among several, those the reader leaned on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from e2erag.corpus import Corpus, Gates, Lines
from e2erag.extract import Box, Document, GateMode, Unit
from e2erag.joint import Joint


@dataclass(frozen=True)
class Citation:
    """Lines of a page.

    Attributes:
        file: as it was indexed.
        page: from 1.
        lines: line numbers on the page, from 1.
        box: around these lines, in points from the top left of the page.
        text: what stands there.
        score: share of the evidence, p(z|x)·p(y|x,z) over all passages read.
    """

    file: str
    page: int
    lines: tuple[int, ...]
    box: Box
    text: str
    score: float

    def __str__(self) -> str:
        lines = f"line{'s' if len(self.lines) > 1 else ''} {', '.join(map(str, self.lines))}"
        box = ", ".join(f"{value:.0f}" for value in self.box)
        return f"{self.file}, page {self.page}, {lines} (box {box}; score {self.score:.2f}): {self.text}"


def cite(
    model: Joint,
    corpus: Corpus,
    question: str,
    answer: str,
    passage: int,
    score: float,
    gates: Gates,
    mode: GateMode,
) -> Citation:
    """The lines of a passage that an answer rests on.

    Where the answer's words stand in the passage, the shortest run of lines with all of them; where they stand in
    several places, or in none, the run (or line) whose reading gates the answer depends on most:
    d log p(y|x,z) / d log w, one backward pass for all lines.
    """
    lines, _ = model.reading_lines(corpus, passage, gates, mode)
    if not len(lines):  # the reader was left with nothing, so the passage as a whole is what was found
        full, carried = corpus.lines(passage)
        lines = full[carried:]
    units = _units(corpus, lines)
    runs = _runs(words(answer), [words(text) for text in _texts(corpus, lines)])
    if len(runs) == 1:
        run = runs[0]
    else:
        weight = _reliance(model, corpus, question, answer, corpus.texts(passage, lines))
        runs = runs or [(i, i + 1) for i in range(len(units))]
        run = max(runs, key=lambda run: float(weight[run[0] : run[1]].mean()))
    cited = [unit for unit in units[run[0] : run[1]] if unit.page == units[run[0]].page]
    box = cited[0].box
    for unit in cited[1:]:
        box = box.union(unit.box)
    document = corpus.passages[passage].document
    text = " ".join(unit.text for unit in cited)
    return Citation(document.file, cited[0].page, tuple(unit.line for unit in cited), box, text, score)


def holds(model: Joint, corpus: Corpus, answer: str, passage: int, gates: Gates, mode: GateMode) -> bool:
    """Whether an answer's words follow each other in what the reader was given of a passage."""
    lines, _ = model.reading_lines(corpus, passage, gates, mode)
    return stands_in([answer], "\n".join(_texts(corpus, lines)))


def stands_in(answers: Sequence[str], text: str) -> bool:
    """Whether one of the answers has its words in a text, one after the other, over the ends of lines too; letter for
    letter where it has no words ("%") or is of a script that doesn't part them."""
    spoken, letters = f" {' '.join(words(text))} ", "".join(text.casefold().split())
    return any(
        f" {' '.join(words(answer))} " in spoken
        if words(answer) and not _UNPARTED.search(answer)
        else "".join(answer.casefold().split()) in letters
        for answer in answers
    )


_UNPARTED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Thai, Lao, Burmese, Khmer, kana and Chinese characters."""


def words(text: str) -> list[str]:
    """Runs of letters and digits, case folded: what must agree for an answer to "stand" somewhere."""
    return re.findall(r"\w+", text.casefold())


def _runs(answer: list[str], lines: list[list[str]]) -> list[tuple[int, int]]:
    """Every place [first, last + 1) in consecutive lines where the answer's words follow each other."""
    if not answer:
        return []
    text, starts, owner = " ", [], []
    for i, line in enumerate(lines):
        for word in line:
            starts.append(len(text))
            owner.append(i)
            text += word + " "
    wanted = " " + " ".join(answer) + " "
    runs, at = [], text.find(wanted)
    while at >= 0:
        first, last = np.searchsorted(starts, [at + 1, at + len(wanted) - 2], side="right") - 1
        runs.append((owner[first], owner[last] + 1))
        at = text.find(wanted, at + 1)
    return runs


def _reliance(model: Joint, corpus: Corpus, question: str, answer: str, lines: Lines) -> Float[np.ndarray, " lines"]:
    """d log p(y|x,z) / d log w per line of the passage; the lines as the texts that they are read as."""
    prompt = model.generator.prompt
    row = prompt.row(corpus.generator_lines, lines, prompt.questions([question])[0], prompt.answers([answer])[0])
    gate = torch.zeros(len(lines), device=model.device, requires_grad=True)
    with torch.enable_grad(), model.autocast():
        logp = model.generator.log_likelihood([row], gate, [np.arange(len(lines))])
        (slope,) = torch.autograd.grad(logp.sum(), gate)
    return slope.cpu().numpy()


def _units(corpus: Corpus, lines: Lines) -> list[Unit]:
    return [document.units[i] for document, i in _places(corpus, lines)]


def _texts(corpus: Corpus, lines: Lines) -> list[str]:
    return [document.texts[i] for document, i in _places(corpus, lines)]


def _places(corpus: Corpus, lines: Lines) -> list[tuple[Document, int]]:
    owner = np.searchsorted(corpus.first_line, lines, side="right") - 1
    return [(corpus.documents[j], int(line - corpus.first_line[j])) for j, line in zip(owner, lines, strict=True)]
