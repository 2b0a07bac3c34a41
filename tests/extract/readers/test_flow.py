"""How blocks are set on nominal pages: inside the margins, one line below the other, no word broken."""

import re
from itertools import pairwise
from pathlib import Path

from format_fixtures import few, read_as, text
from hypothesis import example, given
from hypothesis import strategies as st

from e2erag.extract.features import LAYOUT_FEATURES, layout_features
from e2erag.extract.readers import flow
from e2erag.extract.readers.flow import Block, Break, Pre, Spot, Table, Text, columns, set_on_pages, wrap

# How blocks are set.

setting = st.lists(
    st.one_of(
        st.builds(Text, text, st.integers(0, 6), st.integers(0, 20), st.sampled_from(["", "•", "12."])),
        st.builds(lambda ls: Pre(tuple(ls)), st.lists(st.text("ab \té漢", max_size=150), max_size=6)),
        st.builds(
            lambda rows: Table(tuple(tuple(Spot(t, n, b) for t, n, b in row) for row in rows)),
            st.lists(
                st.lists(st.tuples(st.text("ab c漢", max_size=99), st.integers(1, 30), st.booleans()), max_size=12),
                max_size=6,
            ),
        ),
        st.just(Break()),
    ),
    max_size=10,
)


@few
@given(given=setting)
def test_lines_stand_on_their_pages_one_below_the_other(given: list[Block]) -> None:
    """No box reaches over the margins or into the one above; numbers count; cells are parts of their line, in order."""
    pages = set_on_pages(given)
    assert [page.number for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        assert page.units
        assert [unit.line for unit in page.units] == list(range(1, len(page.units) + 1))
        for unit in page.units:
            assert unit.page == page.number
            assert flow.LEFT <= unit.box.x0 < unit.box.x1 <= flow.RIGHT + 1
            assert flow.TOP <= unit.box.y0 < unit.box.y1 <= flow.BOTTOM
            assert unit.text == " ".join(unit.text.split()) != ""
            for a, b in pairwise(unit.cells):
                assert a.stop + 1 == b.start
                assert a.x0 <= b.x0
            assert all(cell.x0 <= cell.x1 for cell in unit.cells)
        assert all(a.box.y1 < b.box.y0 for a, b in pairwise(page.units))
        assert all(-1 <= rule.y0 <= rule.y1 <= flow.HEIGHT for rule in page.rules)


@few
@given(content=st.text("ab漢字。 -", max_size=400), room=st.integers(1, 100))
@example(content="a -字", room=3)
def test_lines_are_broken_between_words_only(content: str, room: int) -> None:
    """The lines hold the text's characters in order, and only a single word, or what a hyphen ties, is too long."""
    content = " ".join(content.split())
    lines = wrap(content, room)
    assert "".join("".join(lines).split()) == "".join(content.split())
    assert not any(line.startswith(" ") or line.endswith(" ") for line in lines)
    for line in lines:
        tied = re.search("-[ 漢字]", line)  # no line ends in a hyphen
        assert columns(line) <= room or " " not in line or tied or "。" in line


def test_a_word_is_never_broken_but_a_monster_is() -> None:
    """A word longer than a line stands alone on one; 900 letters without a space are no word."""
    assert wrap("a " + "b" * 200 + " c", 90) == ["a", "b" * 200, "c"]
    assert [len(line) for line in wrap("x" * 2000, 90)] == [900, 900, 200]
    assert wrap("字" * 100, 90) == ["字" * 45, "字" * 45, "字" * 10]


def test_nothing_stands_where_running_headers_do(tmp_path: Path) -> None:
    """The features for a page's edges stay zero: a nominal page has no running header."""
    document = read_as(tmp_path, "a.txt", "\n".join(f"line {i}" for i in range(200)))
    table = layout_features(document)
    assert len(document.pages) == 5
    assert not table[:, [LAYOUT_FEATURES.index("page top"), LAYOUT_FEATURES.index("page bottom")]].any()
