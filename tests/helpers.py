"""What several tests need."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import pytest
import torch
from reportlab.pdfgen import canvas
from torch import nn

from e2erag import RAG
from e2erag.extract import Box, Cell, Document, Page, Unit
from e2erag.retriever import ExactIndex, FaissIndex, Index, MilvusIndex, ParallelIndex, ShardedIndex, Store
from e2erag.retriever.approximate import KINDS
from e2erag.train import Run

INDEXES: dict[str, Callable[[Store], Index]] = {
    "exact": ExactIndex,
    "Milvus Lite": MilvusIndex,
    "sharded, one rank": ShardedIndex,
    "parallel, one rank": ParallelIndex,
    **{kind: lambda store, kind=kind: FaissIndex(store, kind) for kind in KINDS},
}
"""Every kind of index, over a store in a folder."""
BY_URI = "Milvus by its URI"
"""One more, for which a server must run."""

NTSB = Path(__file__).parents[1] / "examples" / "ntsb"

PAGES = [
    ["accident number NYC08", "the pilot was 85", "engine maker lycoming", "seats 4", "weight 2000"],
    ["page 2 of 2", "medical exam 1/2/2007", "registration N5921D"],
]
OTHER = [
    ["accident number DEN07", "the pilot was 48", "engine maker continental", "seats 2", "damage none"],
    ["page 2 of 2", "landing gear tailwheel", "registration N74SR"],
]

ROWS = [
    {"question": "how old was the pilot in accident NYC08 ?", "answers": ["85"]},
    {"question": "who made the engine in accident DEN07 ?", "answers": ["continental"]},
    {"question": "registration NYC08 ?", "answer": "N5921D"},
    {"question": "seats DEN07 ?", "answer": "2"},
]
"""Questions about what the fixture `rag` holds."""
OURS = ("retriever/store.py", "retriever/ledger.py", "retriever/approximate.py")
"""Where an index is written."""


TABLE = [("engine", "maker", "weight"), ("tailwheel", "lycoming", "2000"), ("landing", "continental", "9000")]


def table_document() -> Document:
    """A sentence over a table of a header and two rows."""
    units = [Unit("the pilot of aircraft", 1, 1, Box(50.0, 40.0, 300.0, 50.0), 10.0)]
    for i, row in enumerate(TABLE):
        starts = [sum(len(cell) + 1 for cell in row[:j]) for j in range(3)]
        cells = [
            Cell(s, s + len(c), 50.0 + 120 * j, 50.0 + 120 * j + 5 * len(c))
            for j, (s, c) in enumerate(zip(starts, row, strict=True))
        ]
        box = Box(50.0, 70.0 + 14 * i, cells[-1].x1, 80.0 + 14 * i)
        units.append(Unit(" ".join(row), 1, i + 2, box, 10.0, i == 0, tuple(cells)))
    return Document("t.pdf", "0" * 64, (Page(1, 612.0, 792.0, tuple(units)),))


def indexes_of(kind: str, request: pytest.FixtureRequest) -> Callable[[Store], Index]:
    """Makes an index of this kind over a store in a folder, and the same one each time."""
    if "Milvus" in kind:
        pytest.importorskip("milvus_lite", reason="Milvus Lite isn't installed: pip install 'e2erag[milvus]'")
    if kind != BY_URI:
        return INDEXES[kind]
    uri = request.getfixturevalue("server")
    return lambda store: MilvusIndex(store, uri, name=f"of_{sha256(bytes(store.folder)).hexdigest()[:16]}")


def loaded(index: Index, folder: Path) -> Index:
    """What was saved in this folder, searched as this index is."""
    if isinstance(index, MilvusIndex) and index.uri.startswith("http"):
        return MilvusIndex.load(folder, uri=index.uri, name=f"of_{uuid4().hex}")
    return type(index).load(folder)


def in_double(module: nn.Module) -> nn.Module:
    """The module in float64 throughout: Llama's and T5's own norms drop to float32, which finite differences see."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in ("LlamaRMSNorm", "T5LayerNorm"):
                norm = nn.RMSNorm(len(child.weight), eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return module.to(torch.float64)


def hide_page(path: Path) -> None:
    """A PDF of one page with a drawing and no text."""
    sheet = canvas.Canvas(str(path))
    sheet.rect(100, 100, 200, 200)
    sheet.save()


def forked(work: Callable[[], None], at: int | None = None, traced: tuple[str, ...] = OURS) -> int:
    """Run in a child that is killed at the at-th line of these files it executes; how many it did, −1 if killed."""
    if milvus_lite := sys.modules.get("milvus_lite.server_manager"):  # a child would wait for its threads
        milvus_lite.server_manager_instance.release_all()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lines = 0

        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            lines += event == "line"
            if lines == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return line

        def call(frame: FrameType, event: str, _: Any) -> Any:
            return line if any(name in frame.f_code.co_filename for name in traced) else None

        torch.set_num_threads(1)  # a forked child has no thread pool
        sys.settrace(call)
        work()
        sys.settrace(None)
        os.write(writer, str(lines).encode())
        os._exit(0)
    os.close(writer)
    told = os.read(reader, 100)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return int(told) if told else -1


def serving(folder: Path) -> Callable[[], AbstractContextManager[str]]:
    """Starts Milvus over a folder in another process, which is reached by the URI that comes: every time the same."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder), "--host", "127.0.0.1"]

    @contextmanager
    def started() -> Iterator[str]:
        quiet = subprocess.DEVNULL
        process = subprocess.Popen([*command, "--port", str(port)], stdout=quiet, stderr=quiet)
        while True:  # until it listens; if it never does, it has ended
            assert process.poll() is None
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)

    return started


def weights(rag: RAG, stage: str) -> list[torch.Tensor]:
    """A copy of a stage's weights, or of a part's."""
    return [p.detach().clone() for p in rag.model.get_submodule(stage).parameters()]


def quick(rag: RAG, **changes: object) -> Run:
    """Two steps over `ROWS`, if nothing else is said."""
    return rag.fit(ROWS, **{"epochs": 1, "batch_size": 2, "k": 2, "progress": False, **changes})
