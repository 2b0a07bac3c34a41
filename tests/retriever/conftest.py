"""Where indexes of several tests lie."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import serving


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
