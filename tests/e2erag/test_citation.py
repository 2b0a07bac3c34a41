"""Citations: the lines that hold the answer, and a box around them on the page."""

import numpy as np
import pypdfium2
import pytest
from helpers import NTSB

from e2erag import RAG
from e2erag.citation import _runs, cite, words
from e2erag.extract import read
from e2erag.testing import tiny_document, tiny_rag


def cited(system: RAG, passage: int, answer: str, question: str = "what ?") -> object:
    gates = system.model.gates(system.corpus, "hard")
    return cite(system.model, system.corpus, question, answer, passage, 1.0, gates, "hard")


def test_runs_are_where_the_words_follow_each_other() -> None:
    """Within a line, across a line's end, more than once, and nowhere."""
    lines = [words(text) for text in ("the pilot was 85", "years old.", "Age: 85, Male", "85")]
    assert _runs(["85"], lines) == [(0, 1), (2, 3), (3, 4)]
    assert _runs(["85", "years", "old"], lines) == [(0, 2)]
    assert _runs(["old", "age"], lines) == [(1, 3)]
    assert _runs(["8"], lines) == []
    assert _runs([], lines) == []


def test_an_answer_in_one_place_is_cited_there(rag: RAG) -> None:
    """ "lycoming" stands in line 3 of page 1 of a.pdf."""
    for i, passage in enumerate(rag.corpus.passages):
        if "lycoming" in passage.text:
            citation = cited(rag, i, "Lycoming")
            assert (citation.file, citation.page, citation.lines) == ("a.pdf", 1, (3,))
            assert citation.text == "engine maker lycoming"


def test_an_answer_over_two_lines_is_cited_with_both() -> None:
    """The box is around both."""
    system = tiny_rag()
    system.index([tiny_document([["page 1", "damage: minor damage to", "the landing gear", "seats 4"]])])
    i = next(i for i, p in enumerate(system.corpus.passages) if p.stop - p.start == 4)
    citation = cited(system, i, "minor damage to the landing gear")
    assert citation.lines == (2, 3)
    units = system.corpus.documents[0].units
    assert citation.box == units[1].box.union(units[2].box)


def test_an_answer_in_several_places_is_cited_where_the_reader_leans(rag: RAG) -> None:
    """Of two lines with the word, the one with the larger d log p / d log w, by brute force over single gates."""
    system = tiny_rag()
    system.index([tiny_document([["seats 4", "weight 4", "damage none", "page 1"]])])
    i = next(i for i, p in enumerate(system.corpus.passages) if p.stop - p.start == 4)
    citation = cited(system, i, "4", "how many seats ?")
    model, prompt = system.model, system.model.generator.prompt
    lines = np.arange(4)
    row = prompt.row(
        system.corpus.generator_lines, lines, prompt.questions(["how many seats ?"])[0], prompt.answers(["4"])[0]
    )
    import torch

    def logp(line: int, step: float) -> float:
        gates = torch.zeros(4)
        gates[line] = step
        return model.generator.log_likelihood([row], gates, [lines]).item()

    slopes = [(logp(line, 0.05) - logp(line, -0.05)) / 0.1 for line in (0, 1)]
    assert citation.lines == (1 + int(np.argmax(slopes)),)


@pytest.mark.parametrize("report", sorted(NTSB.glob("*.pdf"))[:3], ids=lambda path: path.name)
def test_a_citations_box_contains_the_cited_words_on_the_page(report: object) -> None:
    """What another engine (pypdfium2) finds inside the box is the citation's text, for lines of real reports."""
    system = tiny_rag()
    system.index([read(report)])
    with pypdfium2.PdfDocument(report) as pdf:
        for i in range(0, len(system.corpus.passages), 40):
            passage = system.corpus.passages[i]
            answer = system.corpus.documents[0].units[passage.start].text
            citation = cited(system, i, answer)
            page = pdf[citation.page - 1]
            height = page.get_height()
            x0, y0, x1, y1 = citation.box
            inside = page.get_textpage().get_text_bounded(x0 - 1, height - y1 - 1, x1 + 1, height - y0 + 1)
            assert set(words(citation.text)) <= set(words(inside))
