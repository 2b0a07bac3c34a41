"""Cranfield's own format, as `benchmarks/kinds.py` reads it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
from kinds import cranfield

PASSAGES = """.I 1
.T
wings in a
slipstream .
.A
someone
.B
j. ae. scs. 25
.W
lift of a wing .
  it grows .
.I 2
.T
heat
.A
.B
.W
"""
QUERIES = ".I 001\n.W\nwhat lifts a\nwing .\n.I 004\n.W\nwhat heats .\n"


def test_titles_and_texts_are_passages_and_queries_go_by_their_place(tmp_path: Path) -> None:
    """Authors and sources are left out, an empty abstract is its title; of the grades 1 is the best, −1 none."""
    (tmp_path / "cran.all.1400").write_text(PASSAGES)
    (tmp_path / "cran.qry").write_text(QUERIES)
    (tmp_path / "cranqrel").write_text("1 1 2\n1 2 -1\n2 2 1\n")
    made = cranfield(tmp_path)
    assert made.passages == {"1": "wings in a slipstream . lift of a wing . it grows .", "2": "heat"}
    assert made.queries == {"1": "what lifts a wing .", "2": "what heats ."}
    assert made.judgements == {"1": {"1": 3, "2": 0}, "2": {"2": 4}}
