"""The README's ten lines are executed as they stand."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def ten_lines() -> str:
    """The Python block of the README that begins with the import of RAG."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if block.startswith("from e2erag import RAG\n")]
    return block


@pytest.mark.models
def test_the_ten_lines_of_the_readme_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the real models on the real reports; only the number of training questions is cut to four."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "ntsb").mkdir()
    for path in (ROOT / "examples" / "ntsb").glob("*.pdf"):
        (tmp_path / "examples" / "ntsb" / path.name).symlink_to(path)
    rows = (ROOT / "examples" / "ntsb" / "train.jsonl").read_text().splitlines()[6:10]
    (tmp_path / "examples" / "ntsb" / "train.jsonl").write_text("\n".join(rows))
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        namespace: dict[str, object] = {}
        exec(compile(ten_lines(), "README.md", "exec"), namespace)
    finally:
        os.chdir(here)
    out = capsys.readouterr().out
    assert ".pdf, page" in out
    assert (tmp_path / "my-rag" / "manifest.json").is_file()
    rag, answer = namespace["rag"], namespace["answer"]
    assert answer.citations[0].box.x1 > answer.citations[0].box.x0
    assert rag.ask("How old was the pilot in accident NYC08CA055?").text


def test_the_layout_tree_of_the_readme_is_the_tree() -> None:
    """Every file named in the README's tree exists, and every module of the package is named there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"## Layout\n.*?```\n(.*?)```", readme, re.DOTALL)
    named, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0] if line.split() else ""
        if line and not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            named.add(name)
        elif name:
            named.add(folder + name)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
    modules = [
        str(path.relative_to(ROOT))
        for stage in ("extract", "retriever", "generator", "e2erag", "train")
        for path in (ROOT / stage).rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert not [module for module in modules if module not in named]
