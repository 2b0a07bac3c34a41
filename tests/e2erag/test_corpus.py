"""A corpus of documents: tables in their readings, and nothing that depends on what stands beside a document."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import table_document
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from e2erag.config import RAGConfig
from e2erag.extract import ExtractorConfig
from e2erag.questions import Question
from e2erag.rag import RAG
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import marginal

OTHER = tiny_document([["accident number DEN07", "the pilot was 48"], ["page 2 of 2", "seats 2"]], "b.pdf")


@pytest.fixture
def rag() -> RAG:
    system = tiny_rag(config=RAGConfig(k=3, mode="soft", precision="float32"))
    system.index([table_document(), OTHER])
    return system


def test_a_passages_text_is_the_same_from_the_corpus(rag: RAG) -> None:
    """In every reading, carried lines first; one of the documents has a table."""
    passages = rag.corpus.passages
    assert {passage.reading for passage in passages} == {"lines", "rows", "sentences"}
    assert [rag.corpus.text_at(i) for i in range(len(passages))] == [passage.text for passage in passages]


def test_a_table_is_indexed_in_three_readings(rag: RAG) -> None:
    """As printed, as rows and as sentences: the vector of each is that of the passage's own text."""
    corpus, encoder = rag.corpus, rag.model.retriever.passage
    readings = {
        p.reading: i
        for i, p in enumerate(corpus.passages)
        if (p.start, p.stop) == (1, 4) and p.document.file == "t.pdf"
    }
    assert set(readings) == {"lines", "rows", "sentences"}
    assert "tailwheel | lycoming | 2000" in corpus.passages[readings["rows"]].text
    assert "maker: lycoming" in corpus.passages[readings["sentences"]].text
    numbers = torch.tensor(list(readings.values()))
    gates = rag.model.gates(corpus, "hard")
    vectors = rag.model.encode(corpus, numbers, gates, rag.model.log_prior(corpus, gates), "hard")[:, :-1]
    texts = encoder.encode_text([corpus.passages[i].text for i in numbers.tolist()], "document")
    torch.testing.assert_close(vectors, texts, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)


def test_every_reading_of_a_table_keeps_the_bound_by_its_own_tokens() -> None:
    """Sentences are longer than what is printed: where the lines fit as one candidate, they come in pieces."""
    system = tiny_rag(extractor=ExtractorConfig(text_dim=32, identity_lines=0, max_tokens=16))
    system.index([table_document()])
    corpus = system.corpus
    assert corpus is not None
    sizes, spans = corpus.retriever_lines.sizes, {}
    for i, passage in enumerate(corpus.passages):
        lines, _ = corpus.lines(i)
        assert len(lines) == 1 or sizes[corpus.texts(i, lines)].sum() <= 16
        spans.setdefault(passage.reading, set()).add((passage.start, passage.stop))
    assert (1, 4) in spans["lines"]
    assert (1, 4) not in spans["sentences"]
    assert {i for start, stop in spans["sentences"] for i in range(start, stop)} == {1, 2, 3}


@pytest.mark.parametrize("stay", [(1, 1, 0), (0, 1, 1), (1, 0, 1), (0, 1, 0), (1, 1, 1)])
def test_what_is_left_of_a_corpus_is_the_corpus_of_what_is_left(stay: tuple[int, ...]) -> None:
    """As laid out and proposed anew: lines, tokens, readings of tables, features, pages, candidates, and their hash."""
    documents = [OTHER, table_document(), tiny_document([["engine", "seats 4"], ["weight 2000"]], "c.pdf")]
    system = tiny_rag()
    system.index(documents)
    left = system.corpus.only(np.asarray(stay, bool))
    system.index([document for document, stays in zip(documents, stay, strict=True) if stays])
    anew = system.corpus
    assert left.documents == anew.documents
    assert left.sources() == anew.sources()
    assert left.page.tolist() == anew.page.tolist()
    assert left.first_line.tolist() == anew.first_line.tolist()
    assert torch.equal(left.spans.spans, anew.spans.spans)
    assert torch.equal(left.layout, anew.layout)
    torch.testing.assert_close(left.text, anew.text)
    for a, b in ((left.retriever_lines, anew.retriever_lines), (left.generator_lines, anew.generator_lines)):
        assert a.ids.tolist() == b.ids.tolist()
        assert a.offsets.tolist() == b.offsets.tolist()
    assert [left.text_at(i) for i in range(len(left.passages))] == [passage.text for passage in anew.passages]
    assert left.text_of.tolist() == anew.text_of.tolist()


def test_the_reader_is_given_the_reading_that_was_found(rag: RAG) -> None:
    """The row's tokens are those of the text in that reading, and every token's gate is its own line's."""
    corpus = rag.corpus
    number = next(i for i, p in enumerate(corpus.passages) if p.reading == "sentences")
    gates = rag.model.gates(corpus, "soft")
    rows, slots = rag.model.rows(corpus, ["who ?"], None, torch.tensor([[number]]), gates, "soft", closed_book=False)
    read = rows[0].ids[rows[0].owner >= 0]
    tokenizer = rag.model.generator.tokenizer
    own = corpus.passages[number]
    expected = rag.model.generator.prompt.lines([corpus.passages[number].text.split("\n")[i] for i in range(-2, 0)]).ids
    assert read.tolist() == expected.tolist(), tokenizer.decode(read)
    assert slots[0].tolist() == list(range(own.start, own.stop))


def test_the_answer_teaches_how_to_read_a_table(rag: RAG) -> None:
    """Scores of both readings get a gradient, which has them compete."""
    for head in (rag.model.extractor.gates, rag.model.extractor.scores):
        nn.init.normal_(head.weight, std=0.1)
    rag.config = replace(rag.config, overlap=1.0)  # else a reading that repeats what is found has no part in Z
    rag.index(rag.corpus.documents)
    terms = rag.terms([Question("who made the engine ?", ("lycoming",))], 3, "soft")
    marginal(terms).mean().backward()
    rows, sentences = rag.model.extractor.scores.weight.grad[-2:].norm(dim=1)
    assert rows > 1e-7
    assert sentences > 1e-7


def test_the_order_of_documents_does_not_matter() -> None:
    """Turned round, each document has the same passages, gates, priors and vectors."""
    documents = [table_document(), OTHER, tiny_document([["seats 4", "weight 2000", "the pilot was 85"]], "c.pdf")]
    seen: list[dict[tuple[object, ...], torch.Tensor]] = []
    for order in (documents, documents[::-1]):
        torch.manual_seed(0)
        system = tiny_rag(config=RAGConfig(k=3, mode="soft", precision="float32"))
        for head in (system.model.extractor.gates, system.model.extractor.scores):
            nn.init.normal_(head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
        system.index(order)
        rows = system.index_.vectors
        seen.append(
            {(p.document.file, p.start, p.stop, p.reading): rows[i] for i, p in enumerate(system.corpus.passages)}
        )
    assert seen[0].keys() == seen[1].keys()
    for key, vector in seen[0].items():
        torch.testing.assert_close(vector, seen[1][key], atol=1e-5, rtol=1e-5)


def test_an_extractor_by_itself_proposes_what_a_system_indexes() -> None:
    """With the retriever's text features and token counts: the same passages as in hard mode, gates shut, gaps cut."""
    rag = tiny_rag(extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(2, 4), max_tokens=30))
    extractor, encoder = rag.model.extractor, rag.model.retriever.passage
    torch.manual_seed(3)
    for head in (extractor.gates, extractor.scores):
        nn.init.normal_(head.weight)
    nn.init.constant_(extractor.scores.bias, 4.0)
    documents = [table_document(), OTHER, tiny_document([["weight 9", "Maker", "who ?"] * 4, ["seats 2"] * 3], "c.pdf")]
    rag.index(documents)
    said = rag.model.gates(rag.corpus, "hard")
    assert (said.retrieve[: len(rag.corpus)] < 0).any()
    assert extractor.taken(said.extraction.cut).any()
    tokens, found = rag.corpus.retriever_lines.sizes[rag.corpus.text_of], []
    for first, document in zip(rag.corpus.first_line, documents, strict=False):
        text = encoder.line_features(encoder.lines(document.texts))
        found += extractor(document, text, tokens[:, first : first + len(document)])
    assert found == rag.corpus.passages
    assert found != [passage for document in documents for passage in extractor(document)]


@given(order=st.permutations(range(4)))
@settings(max_examples=6, deadline=None)
def test_the_order_of_documents_changes_nothing_of_what_is_proposed_and_found(order: list[int]) -> None:
    """Gates shut, gaps cut, a file twice under two names: the passages of each document and what questions find."""
    pages = [["weight 9", "Maker lycoming", "who ?"] * 3, ["seats 2", "the pilot was 48"] * 3]
    documents = [table_document(), OTHER, tiny_document(pages, "c.pdf"), tiny_document(pages[1:], "d.pdf")]
    found = []
    for some in (documents, [documents[i] for i in order]):
        rag = tiny_rag(seed=1)
        torch.manual_seed(3)
        for head in (rag.model.extractor.gates, rag.model.extractor.scores):
            nn.init.normal_(head.weight)
        nn.init.constant_(rag.model.extractor.scores.bias, 4.0)
        rag.index(some)
        ids = rag.search(["who was the pilot ?", "engine maker ?"], k=3).ids
        hits = [[(z.document.file, z.start, z.stop, z.reading) for z in map(rag.passage, row)] for row in ids.tolist()]
        of = {each.file: [z for z in rag.corpus.passages if z.document is each] for each in some}
        assert rag.corpus.passages == [z for each in some for z in of[each.file]]
        found.append((of, hits))
    assert found[0] == found[1]
    assert sum(map(len, found[0][0].values())) > 0
