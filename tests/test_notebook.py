"""The notebook runs, shortened, on the same data."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "01_demo.ipynb"


@pytest.mark.models
def test_the_demo_notebook_runs() -> None:
    """Every cell, with the real models, one pass over four questions; the picture and the table are there."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source = "EPOCHS, QUESTIONS = 1, 4"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for c in notebook.cells if c.cell_type == "code" for output in c.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("exact match" in output.get("text", "") for output in outputs)
