"""What making an index holds of rows at its peak, and that rows made a few at a time are those made at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from e2erag import RAG, RAGConfig
from e2erag.retriever import IndexConfig
from e2erag.testing import tiny_document, tiny_rag

PEAKS = """
import sys
from pathlib import Path
import torch
from e2erag import RAGConfig, indexing
from e2erag.extract import ExtractorConfig
from e2erag.retriever import IndexConfig, RetrieverConfig, Store, table
from e2erag.testing import tiny_document, tiny_rag

def status(entry):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry)]
    return 1024 * int(line.split()[1])

def laid_out(*lines, large="pilot"):
    files = [[f"{large if count > 1000 else 'age'} {d} {i}" for i in range(count)] for d, count in enumerate(lines)]
    corpus = rag._lay_out([tiny_document([file], f"{d}.pdf") for d, file in enumerate(files)])
    rag.indexer.propose(corpus, "soft", rag.config.overlap)
    return corpus

def peak(step, make):
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = status("VmRSS")
    rows = make()
    print(step, (status("VmHWM") - before) / rows.nbytes)
    return rows

def encode(corpus, *old, folder=None):
    judged = rag.indexer._judged(corpus, "soft")
    rag.indexer._judged = lambda *_: judged  # what gates take is no matter of rows

    def make():
        indexes.append(rag.indexer.encode(corpus, "soft", IndexConfig(folder=folder, dtype="float16"), *old))
        assert len(indexes[-1]) == 3000 or len(indexes) == 1
        return indexes[-1].vectors

    return make

torch.set_num_threads(1)
indexing.AT_ONCE = indexing.PORTION = 128
table._CONVERTED = 64
lines = ExtractorConfig(text_dim=32, hidden=16, sizes=(1,), identity_lines=0, kinds=())
rag = tiny_rag(extractor=lines, config=RAGConfig(mode="soft", precision="float32"))
judge, rag.model.encode = rag.indexer._judged, lambda corpus, passages, *_: torch.randn(len(passages), 8193)
indexes = []
encode(laid_out(20, 20))()  # libraries take what is theirs
rag.indexer._judged = judge
corpus = laid_out(50, 2900, 50)
peak("memory", encode(corpus))
index = indexes[-1]
everything = torch.arange(len(corpus.passages))
peak("share", lambda: rag.indexer.encode_some(corpus, index, everything, "soft", IndexConfig()).vectors)
peak("folder", encode(corpus, folder=sys.argv[1]))
rag.indexer._judged = judge
other = laid_out(50, 2900, 50, large="engine")
peak("memory, with rows that are known", encode(other, index))
peak("folder, with rows that are known", encode(other, folder=sys.argv[1]))
folder = indexes[-1].store.folder
del index, indexes[:], everything
peak("out of a folder", lambda: IndexConfig().owned(IndexConfig().over(Store(folder, torch.float16))).vectors)

pooled = tiny_rag(
    extractor=lines, retriever=RetrieverConfig(gates="pool"), config=RAGConfig(mode="soft", precision="float32")
)
encoder = pooled.model.retriever.passage
encoder.width, encoder.token_budget = 8192, 64
encoder._hidden = lambda ids, *_: torch.randn(*ids.shape, 8192)

def sums(corpus, folder=None):
    work = pooled.indexer.lines.work(corpus, pooled.indexer.made_with(corpus, "soft"), folder)
    entries = pooled.indexer._pooled(corpus, "soft", pooled.indexer._judged(corpus, "soft"), torch.float32).entries
    batches = indexing._batches(corpus.sources())
    return lambda: pooled.indexer.lines.sums(corpus, work, batches, entries).rows

sums(laid_out(20, 20))()
corpus = laid_out(2, 1000, 2)
pooled.indexer.lines.store = None
peak("sums in memory", sums(corpus))
pooled.indexer.lines.store = None
peak("sums in a folder", sums(corpus, sys.argv[1]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read where Linux says it")
def test_rows_are_held_once_while_an_index_is_made(tmp_path: Path) -> None:
    """At most half more than what is stored, in float16, also of one document that is nearly all of it."""
    # What is freed leaves memory at once.
    system = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PEAKS, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=system)
    peaks = {step: float(peak) for step, peak in (line.rsplit(" ", 1) for line in run.stdout.splitlines())}
    assert len(peaks) == 8
    assert all(peak < 1.5 for peak in peaks.values()), peaks


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_rows_made_a_few_at_a_time_are_those_made_at_once(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, beside known ones and of a share; a document that is larger than a batch among others, and one
    without a line."""
    documents = [tiny_document([[f"seats {d}", "the pilot was 85"]] * d, f"{d}.pdf") for d in (1, 4, 2)]
    documents.append(tiny_document([[]], "empty.pdf"))

    def made(name: str) -> list[torch.Tensor]:
        config = IndexConfig(folder=str(tmp_path / name) if where == "folder" else None, dtype="float16")
        rag = tiny_rag(config=RAGConfig(mode="soft", precision="float32", index=config))
        seen = []

        def look(system: RAG) -> None:
            assert system.index_.vectors.dtype == torch.float16
            seen.append(system.index_.vectors.float())

        rag.index(documents)
        look(rag)
        rag.delete("1.pdf")
        look(rag)
        with torch.no_grad():
            next(rag.model.retriever.passage.transformer.encoder.parameters())[0, 0] += 0.1
        rag.refresh(torch.arange(0, len(rag.corpus.passages), 2))
        look(rag)
        return seen

    whole = made("whole")
    monkeypatch.setattr("e2erag.indexing.AT_ONCE", 5)
    monkeypatch.setattr("e2erag.indexing.PORTION", 3)
    for few, all_of_them in zip(made("few"), whole, strict=True):
        torch.testing.assert_close(few, all_of_them, rtol=0, atol=2e-3)
