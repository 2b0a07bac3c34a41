"""Candidate passages, and lines as tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2erag.extract import propose
from e2erag.extract.tokens import LineTokens, buckets, pad
from e2erag.testing import tiny_document, tiny_encoder

LINES = st.lists(st.lists(st.sampled_from(["the pilot", "seats 4", "page 1"]), max_size=9), min_size=1, max_size=4)
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=3)


@given(pages=LINES, sizes=SIZES, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_line_is_in_a_candidate_and_no_span_comes_twice(
    pages: list[list[str]], sizes: list[int], seed: int
) -> None:
    """Whatever the pages, sizes and cuts: all lines covered, spans unique and sorted, none across a page or a cut."""
    document = tiny_document(pages)
    cuts = np.random.default_rng(seed).random(len(document)) < 0.3
    passages = propose(document, sizes, cuts=cuts)
    spans = [(p.start, p.stop) for p in passages]
    assert spans == sorted(set(spans))
    assert {i for start, stop in spans for i in range(start, stop)} == set(range(len(document)))
    assert all(len(p.pages) == 1 for p in passages)
    assert not any(cuts[start + 1 : stop].any() for start, stop in spans)


@given(pages=LINES, sizes=SIZES, named=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_passage_is_its_lines_and_carries_what_it_does_not_hold(
    pages: list[list[str]], sizes: list[int], named: int
) -> None:
    """Its text is the identity lines that stand elsewhere, then its own lines, each once."""
    document = tiny_document(pages)
    for passage in propose(document, sizes, named):
        own = list(range(passage.start, passage.stop))
        assert set(passage.carried) == set(range(min(named, len(document)))) - set(own)
        assert passage.text == "\n".join(document.units[i].text for i in [*passage.carried, *own])


def test_two_granularities_overlap() -> None:
    """Six lines with windows of 2 and 4: steps of half a window, so every gap is inside some candidate."""
    spans = [(p.start, p.stop) for p in propose(tiny_document([["a"] * 6]), (2, 4))]
    assert spans == [(0, 2), (0, 4), (1, 3), (2, 4), (2, 6), (3, 5), (4, 6)]


def test_a_cut_splits_the_windows_that_cross_it() -> None:
    """One window of four lines, cut before its third."""
    cuts = np.array([False, False, True, False])
    assert [(p.start, p.stop) for p in propose(tiny_document([["a"] * 4]), (4,), cuts=cuts)] == [(0, 2), (2, 4)]


def test_a_window_of_no_lines_is_refused() -> None:
    """The rule and what came."""
    with pytest.raises(ValueError, match=r"sizes must be window lengths of at least one line, got \(0,\)"):
        propose(tiny_document([["a"]]), (0,))


def test_lines_tokenised_alone_give_the_tokens_of_the_joined_text() -> None:
    """WordPiece splits at white space, so a passage's tokens are its lines' tokens, end to end."""
    tokenizer = tiny_encoder().tokenizer
    lines = ["the pilot was 85", "engine maker: lycoming", "O-320-A1A"]
    ids, owner = LineTokens(tokenizer, lines).gather(np.array([0, 1, 2]))
    assert ids.tolist() == tokenizer("\n".join(lines), add_special_tokens=False)["input_ids"]
    assert np.bincount(owner).tolist() == [len(tokenizer(x, add_special_tokens=False)["input_ids"]) for x in lines]


def test_a_document_cannot_write_special_tokens() -> None:
    """ "[SEP]" on a page is read as brackets and letters."""
    encoder = tiny_encoder()
    ids, _ = encoder.lines(["the [SEP] pilot"]).gather(np.array([0]))
    assert encoder.tokenizer.sep_token_id not in ids


@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=30), budget=st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_buckets_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    """Padded to the longest row a bucket stays within the budget, unless a single row exceeds it."""
    groups = list(buckets(np.asarray(lengths), budget))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= budget for g in groups)


def test_padding_on_either_side() -> None:
    """Rows of one and two tokens."""
    rows = [np.array([5]), np.array([6, 7])]
    assert pad(rows, 0).tolist() == [[5, 0], [6, 7]]
    assert pad(rows, 0, left=True).tolist() == [[0, 5], [6, 7]]
