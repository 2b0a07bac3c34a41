"""The tree is the explanation: imports go one way, surfaces are sorted, nothing private leaks in."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("extract", "retriever", "generator", "train")
MAY_IMPORT = {
    "extract": {"extract"},
    "retriever": {"extract", "retriever"},
    "generator": {"extract", "generator"},
    "e2erag": {"extract", "retriever", "generator", "e2erag"},
    "train": {"extract", "retriever", "generator", "e2erag", "train"},
}
TOP = {"e2erag/__main__.py"}  # the command line stands above everything


def files() -> list[Path]:
    return [path for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(path: Path) -> list[str]:
    """Modules imported when the file is, TYPE_CHECKING blocks and function bodies left out."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    """extract ← retriever, extract ← generator, all three ← e2erag ← train; no bare stage names."""
    if str(path.relative_to(ROOT)) in TOP:
        return
    for module in imported(path):
        first, *rest = module.split(".")
        assert first not in STAGES, f"{path} imports {module}: a second copy of its classes"
        if first == "e2erag":
            stage = rest[0] if rest and rest[0] in STAGES else "e2erag"
            assert stage in MAY_IMPORT[path.relative_to(ROOT).parts[0]], f"{path} imports {module}"


@pytest.mark.parametrize("stage", STAGES)
def test_stage_folders_are_links(stage: str) -> None:
    """e2erag/extract → ../extract, so that one file is one module."""
    link = ROOT / "e2erag" / stage
    assert link.is_symlink()
    assert link.resolve() == ROOT / stage


@pytest.mark.parametrize("module", ["e2erag", *(f"e2erag.{stage}" for stage in STAGES)])
def test_the_public_surface_is_one_list_and_all_of_it_is_there(module: str) -> None:
    """`__all__` has no doubles, every name in it exists, and what can be called has a docstring."""
    loaded = importlib.import_module(module)
    names = loaded.__all__
    assert len(names) == len(set(names))
    assert all(hasattr(loaded, name) for name in names)
    assert all(
        getattr(loaded, name).__doc__
        for name in names
        if inspect.isroutine(getattr(loaded, name)) or inspect.isclass(getattr(loaded, name))
    )


def test_no_public_name_is_a_modules_name_too() -> None:
    """Importing a submodule sets an attribute of the package, which would hide a function of the same name."""
    import e2erag

    assert [name for name in e2erag.__all__ if (ROOT / "e2erag" / f"{name}.py").exists()] == []


HEAVY = {
    "pypdf": 2, "faiss": 1, "sentence_transformers": 2, "lightning": 5, "pypdfium2": 1, "PIL": 1, "torchmetrics": 1,
}  # fmt: skip


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_dependencies_are_imported_by_few_files(package: str) -> None:
    """Each by no more files than listed here."""
    users = [path for path in files() if any(name.split(".")[0] == package for name in imported(path))]
    assert len(users) <= HEAVY[package], users


def test_nothing_loads_pickles_or_remote_code() -> None:
    """No pickle, no torch.load, no trust_remote_code=True anywhere in the package."""
    for path in files():
        text = path.read_text()
        assert "pickle" not in [name.split(".")[0] for name in imported(path)], path
        assert "torch.load(" not in text, path
        assert "trust_remote_code=True" not in text, path
