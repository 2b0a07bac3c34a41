"""Rows in memory: what building them holds at its peak, and that readers of the first ones keep them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from e2erag.retriever import ExactIndex, Source, Store, table

PEAKS = """
import torch
from pathlib import Path
from e2erag.retriever import Source, Store

def status(entry):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry)]
    return 1024 * int(line.split()[1])

def batches():
    return [[Source(str(i), "1", 2000)] for i in range(40)]

torch.set_num_threads(1)
Store(dtype=torch.float16).add([Source("a", "1", 5000)], torch.randn(5000, 256))  # libraries take what is theirs
for dtype in (torch.float32, torch.float16):
    rows = torch.randn(80_000, 256)
    encode = lambda sources: torch.randn(2000 * len(sources), 256)
    for step in ("add", "build", "grow", "one"):
        store = Store(dtype=dtype) if step != "one" else store
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        before = status("VmRSS")
        if step == "add":
            store.add([Source("a", "1", len(rows))], rows)
        elif step == "build":
            store.build(batches(), encode)
        elif step == "grow":
            for batch in batches():
                store.add(batch, encode)
        else:
            store.add([Source("a", "1", 1)], rows[:1])
        print(dtype, step, (status("VmHWM") - before) / (store.rows.numel() * dtype.itemsize))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read where Linux says it")
def test_rows_are_held_once_while_they_come() -> None:
    """At most half more than what is stored at a time, in either dtype; and one row more copies nothing."""
    run = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    peaks = {tuple(line.split()[:2]): float(line.split()[2]) for line in run.stdout.splitlines()}
    assert len(peaks) == 8
    assert all(peak < (0.1 if step == "one" else 1.5) for (_, step), peak in peaks.items()), peaks


def filled(store: Store, *seeds: int) -> list[torch.Tensor]:
    """What a reader saw after each document."""
    seen = []
    for seed in seeds:
        store.update([Source(str(seed % 2), str(seed), 3)], torch.full((3, 4), float(seed)))
        seen.append(store.rows)
    return seen


@pytest.mark.parametrize("granted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reader_keeps_the_rows_it_has_seen(
    granted: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system grants no more room than is needed, so that rows move. What a reader saves is what it sees
    and not the room behind it."""
    if not granted:
        monkeypatch.delattr("os.sysconf")  # as on Windows
    seen = filled(Store(dtype=dtype), *range(1, 8))
    for number, rows in enumerate(seen):
        assert rows[:, 0].tolist() == [float(1 + i // 3) for i in range(3 * (1 + number))]
        assert rows.untyped_storage().nbytes() == rows.numel() * rows.element_size()
    assert (seen[-1].data_ptr() == seen[0].data_ptr()) == granted


def test_what_was_given_is_not_written_to_and_not_behind() -> None:
    """Rows searched where they lie are a caller's: what comes behind them goes to a place of the store's own."""
    given = torch.arange(40.0).view(10, 4)
    index = ExactIndex.of(given[:5])
    index.add([Source("more", "1", 2)], -torch.ones(2, 4))
    assert given.equal(torch.arange(40.0).view(10, 4))
    assert index.vectors.equal(torch.cat([given[:5], -torch.ones(2, 4)]))


def test_rows_refused_halfway_leave_those_before_them(tmp_path: Path) -> None:
    """The last of several blocks isn't finite: nothing counts, and no file has grown."""
    rows = torch.ones(3 * table._CONVERTED, 4)
    for store in (Store(), Store(tmp_path)):
        filled(store, 1)
        rows[-1] = 1e30
        with pytest.raises(ValueError, match=f"finite in float16; passage {len(rows) - 1} has NaN or infinity"):
            Store(store.folder and tmp_path / "half", torch.float16).add([Source("a", "1", len(rows))], rows)
        rows[-1] = torch.nan
        with pytest.raises(ValueError, match=f"finite in float32; passage {len(rows) - 1} has NaN or infinity"):
            store.add([Source("a", "1", len(rows))], rows)
        filled(store, 2)
        assert store.rows[:, 0].tolist() == [1.0] * 3 + [2.0] * 3
    assert (tmp_path / "rows-1.bin").stat().st_size == 6 * 16
    assert (tmp_path / "half" / "rows-1.bin").stat().st_size == 0
