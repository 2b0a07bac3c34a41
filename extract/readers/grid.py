"""Tables of formats that say what a cell is: which rows are rows of a table, and which only lay a page out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from e2erag.extract.readers.flow import Block, Spot, Table, Text

CELL = 300  # characters: a row with a longer cell is no row but blocks, one after another
SPAN = 100  # columns, and rows, that one cell may reach over
REPEATS = 20_000  # cells of a document that may be said again in a row further down


@dataclass(slots=True)
class Field:
    """A cell as it stands in the file: what is in it, and how many columns and rows it reaches over."""

    blocks: list[Block]
    columns: int = 1
    rows: int = 1
    strong: bool = False

    @property
    def text(self) -> str:
        parts = (f"{block.marker} {block.text}" for block in self.blocks if isinstance(block, Text))
        return " ".join(part.strip() for part in parts)

    @property
    def plain(self) -> bool:
        """Whether it can be a cell of a line: nothing but text in it, and not much."""
        return all(isinstance(block, Text) for block in self.blocks) and len(self.text) <= CELL

    def spot(self) -> Spot:
        texts = [block for block in self.blocks if isinstance(block, Text)]
        strong = sum(len(b.text) * (1 if b.bold or b.heading else -1) for b in texts) > 0
        return Spot(self.text, self.columns, self.strong or strong)


class Budget:
    """How many more cells of a document may be said again: else a short file could become a long one."""

    def __init__(self) -> None:
        self.left = REPEATS


def as_blocks(rows: Iterable[Sequence[Field]], ruled: bool, budget: Budget) -> list[Block]:
    """The rows of a table as blocks.

    A cell that reaches over rows is said in each of them, so that every row can be read by itself; one that reaches
    over columns is said once and stands across them. A row with a table in one of its cells, or with several lines'
    worth, becomes the blocks that are in it, and so does a table with a single column.
    """
    out: list[Block] = []
    run: list[tuple[Spot, ...]] = []
    full = list(_full(rows, budget))
    narrow = all(sum(bool(field.text.strip()) or not field.plain for field in row) < 2 for row in full)
    for row in full:
        if not narrow and all(field.plain for field in row):
            run.append(tuple(field.spot() for field in row))
            continue
        if run:
            out.append(Table(tuple(run), ruled))
            run = []
        out += [block for field in row for block in field.blocks]
    return [*out, Table(tuple(run), ruled)] if run else out


def _full(rows: Iterable[Sequence[Field]], budget: Budget) -> Iterator[list[Field]]:
    """Rows in which cells from rows above are said again."""
    hanging: dict[int, tuple[Field, int]] = {}  # by column: a cell, and over how many more rows it reaches
    for row in rows:
        full: list[Field] = []
        below: dict[int, tuple[Field, int]] = {}
        column = 0
        waiting = sorted(hanging, reverse=True)
        fields = list(row)[::-1]
        while fields or waiting:
            if waiting and waiting[-1] <= column:
                field, left = hanging[waiting.pop()]
                budget.left -= 1
                if budget.left < 0:
                    continue
                field = replace(field, blocks=field.blocks if field.plain else [], rows=left)
            elif fields:
                field = fields.pop()
            else:
                field = Field([], waiting[-1] - column)
            full.append(field)
            if field.rows > 1:
                below[column] = field, field.rows - 1
            column += field.columns
        hanging = below
        yield full
