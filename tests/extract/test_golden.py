"""Golden texts: what is read from documents of several kinds, line by line (see `golden/README.md`)."""

from pathlib import Path

import pytest

from e2erag.extract import read

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("engine", ["pypdf", "pypdfium2"])
@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.pdf")))
def test_every_line_as_it_stands_on_the_page(name: str, engine: str) -> None:
    if engine == "pypdfium2":
        pytest.importorskip("pypdfium2")
    pages = read(GOLDEN / f"{name}.pdf", engine=engine).pages
    golden = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")
    assert [[unit.text for unit in page.units] for page in pages] == [page.split("\n") for page in golden.split("\f")]
