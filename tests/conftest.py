"""Shared fixtures: no test reaches a network, and every test starts from the same random state."""

import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import OTHER, PAGES, indexes_of, serving
from hypothesis import settings

from e2erag.rag import RAG
from e2erag.retriever import Index, Store
from e2erag.testing import tiny_document, tiny_rag

# A run that decides whether a change lands draws the same cases each time; at a desk they are new ones.
settings.register_profile("fixed", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """The command line sets the library's level for its process; in this one it is as before afterwards."""
    logger = logging.getLogger("e2erag")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def rag() -> RAG:
    """A tiny system over two tiny documents."""
    system = tiny_rag()
    system.index([tiny_document(PAGES, "a.pdf"), tiny_document(OTHER, "b.pdf")])
    return system


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {disk} 2>/dev/null"):
        pytest.skip("only root can mount a small disk")
    yield disk
    os.system(f"umount -l {disk}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Milvus in another process, reached as a cluster is."""
    with serving(tmp_path_factory.mktemp("server"))() as uri:
        yield uri


@pytest.fixture
def over(request: pytest.FixtureRequest) -> Callable[[Store], Index]:
    """Makes an index of the kind that a test names."""
    return indexes_of(request.param, request)
