"""What tests of formats without pages share: blocks as data, and each format's way to write them."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import docx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from e2erag.extract import Document
from e2erag.extract.readers import READERS

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_as(path: Path, name: str, content: str | bytes) -> Document:
    file = path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return READERS[file.suffix](file)


def words(document: Document) -> list[str]:
    return [word for unit in document for word in unit.text.split()]


def cells(document: Document) -> list[list[str]]:
    return [[u.text[c.start : c.stop] for c in u.cells] for u in document if u.cells]


# Blocks as data, and each format's way to write them.

word = st.text("abcdefghijkmnoprstuäöüé", min_size=1, max_size=12)
text = st.lists(word, min_size=1, max_size=60).map(" ".join)
short = st.lists(word, min_size=1, max_size=4).map(" ".join)
block = st.one_of(
    st.builds(lambda t, n: ("heading", t, n), short, st.integers(1, 6)),
    st.builds(lambda t: ("paragraph", t), text),
    st.builds(lambda ts: ("list", ts), st.lists(text, min_size=1, max_size=4)),
    st.builds(
        lambda n, m, ts: ("table", [[ts[(i * m + j) % len(ts)] for j in range(m)] for i in range(n)]),
        st.integers(2, 4),
        st.integers(2, 4),
        st.lists(short, min_size=5, max_size=16),
    ),
)
blocks = st.lists(block, min_size=1, max_size=8)


def spoken(given: Sequence[tuple]) -> list[str]:
    """The words of blocks, in order."""
    out: list[str] = []
    for kind, what, *_ in given:
        rows = what if kind == "table" else [what] if kind == "list" else [[what]]
        out += [word for row in rows for cell in row for word in cell.split()]
    return out


def as_html(given: Sequence[tuple]) -> str:
    out = []
    for kind, what, *level in given:
        if kind == "heading":
            out.append(f"<h{level[0]}>{what}</h{level[0]}>")
        elif kind == "paragraph":
            out.append(f"<p>{what}")
        elif kind == "list":
            out.append("<ul>" + "".join(f"<li>{item}" for item in what) + "</ul>")
        else:
            rows = ["".join(f"<td>{cell}</td>" for cell in row) for row in what]
            out.append(f"<table>{''.join(f'<tr>{row}' for row in rows)}</table>")
    return "\n".join(out)


def as_markdown(given: Sequence[tuple]) -> str:
    out = []
    for kind, what, *level in given:
        if kind == "heading":
            out.append(f"{'#' * level[0]} {what}")
        elif kind == "paragraph":
            out.append(what)
        elif kind == "list":
            out.append("\n".join(f"- {item}" for item in what))
        else:
            rows = [f"| {' | '.join(row)} |" for row in what]
            out.append("\n".join([rows[0], "|" + "---|" * len(what[0]), *rows[1:]]))
    return "\n\n".join(out)


def as_text(given: Sequence[tuple]) -> str:
    out = []
    for kind, what, *_ in given:
        rows = [what] if kind in ("heading", "paragraph") else what if kind == "list" else ["\t".join(r) for r in what]
        out.append("\n".join(rows))
    return "\n\n".join(out)


def as_docx(given: Sequence[tuple]) -> bytes:
    made = docx.Document()
    for kind, what, *level in given:
        if kind == "heading":
            made.add_heading(what, level[0])
        elif kind == "paragraph":
            made.add_paragraph(what)
        elif kind == "list":
            for item in what:
                made.add_paragraph(item, style="List Bullet")
        else:
            table = made.add_table(len(what), len(what[0]))
            for row, texts in zip(table.rows, what, strict=True):
                for cell, content in zip(row.cells, texts, strict=True):
                    cell.text = content
    file = io.BytesIO()
    made.save(file)
    return file.getvalue()


WRITERS: dict[str, Callable[[Sequence[tuple]], str | bytes]] = {
    "a.html": as_html, "a.md": as_markdown, "a.txt": as_text, "a.docx": as_docx,
}  # fmt: skip
