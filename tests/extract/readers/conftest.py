"""What a test here draws, both PDF engines read alike."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pdf_fixtures import ENGINES, assert_alike

from e2erag.extract import Document, ReadError
from e2erag.extract.readers import pdf
from e2erag.extract.readers.pdf import read_pdf

_HELD: set[str] = set()
"""Tests, whatever engine they are about, of which it was held already."""


@pytest.fixture(autouse=True)
def contract(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Holds the engines' contract over the PDFs that a test has left, but for those that both engines refuse.

    A test marked `differs` says why theirs differ, and fails where they don't."""
    yield
    name, why = request.node.nodeid, request.node.get_closest_marker("differs")
    for engine in ENGINES:
        name = name.replace(f"[{engine}", "[")
    if name in _HELD:
        return
    _HELD.add(name)
    same = True
    for path in sorted(tmp_path.rglob("*.pdf")):
        one, other = (read_or_refused(path, engine) for engine in ENGINES)
        if isinstance(one, ReadError) or isinstance(other, ReadError):
            assert isinstance(one, ReadError) and isinstance(other, ReadError), (one, other)  # noqa: PT018
            continue
        try:
            assert_alike(one, other)
        except AssertionError:
            if why is None:
                raise
            same = False
    assert why is None or not same, f"the engines agree, where they were said to differ: {why.args[0]}"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """For what holds for both engines: each is the default once."""
    monkeypatch.setattr(pdf, "engine_or_default", lambda engine: engine or request.param)
    return str(request.param)


def read_or_refused(path: Path, engine: str) -> Document | ReadError:
    try:
        return read_pdf(path, engine)
    except ReadError as error:
        return error
