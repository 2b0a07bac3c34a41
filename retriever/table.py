"""Rows in memory that stay where they are while more are put behind them."""

import mmap
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from e2erag.retriever.index import Rows

_CONVERTED = 1 << 10  # rows checked and converted at a time


class Table:
    """Rows one after the other, for readers of the first so many; those are not written to again.

    Room is reserved for as many as the machine's memory holds, and a page of it is taken when something is written
    there: more rows move none. Where a system grants no such room, a quarter more than is needed is taken.
    """

    def __init__(self, rows: Rows) -> None:
        """
        Args:
            rows: the first ones; searched where they lie until others come.
        """
        self._rows, self._room = rows, 0
        self._bytes: mmap.mmap | bytearray

    def first(self, count: int) -> Rows:
        """So many rows; the same tensor as long as they are as many."""
        if len(self._rows) != count:
            self._rows = self._view(count) if self._room else self._rows[:count]
        return self._rows

    def put(self, start: int, rows: Rows) -> None:
        """Behind the first `start` rows."""
        stop = start + len(rows)
        if stop > self._room:
            old = self.first(start)
            self._reserve(stop)
            self._rows = self._view(start)
            self._rows.copy_(old)
        self._view(stop)[start:] = rows

    def _reserve(self, rows: int) -> None:
        width = max(1, self._rows.shape[1] * self._rows.element_size())
        try:
            self._room = max(rows, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // width)
            self._bytes = mmap.mmap(-1, self._room * width, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (AttributeError, OSError, ValueError, OverflowError):  # Windows has none of it
            self._room = rows + rows // 4
            self._bytes = bytearray(max(1, self._room * width))

    def _view(self, count: int) -> Rows:
        """With a storage of their own size: what is saved or sent of them is these rows and not the room."""
        width, dtype = self._rows.shape[1], self._rows.dtype
        if not count * width:  # nothing can't be looked at
            return torch.empty(count, width, dtype=dtype)
        data = np.frombuffer(self._bytes, np.uint8, count * width * dtype.itemsize)
        return torch.from_numpy(data).view(dtype).view(count, width)


def as_stored(parts: Sequence[Rows], dtype: torch.dtype) -> Iterator[Rows]:
    """These rows in a dtype, if that can hold them; a few at a time, so that they aren't held twice."""
    start = 0
    for rows in (rows for part in parts for rows in part.detach().split(_CONVERTED)):
        data = rows.to("cpu", dtype).contiguous()
        if not (finite := torch.isfinite(data)).all():
            bad = int((~finite).any(1).nonzero()[0])
            why = ": did training diverge?"
            if torch.isfinite(rows[bad]).all():
                why = f" there, of {float(rows[bad].abs().max()):.3g}, which it can't hold: store float32"
            name = str(dtype).removeprefix("torch.")
            raise ValueError(f"rows must be finite in {name}; passage {start + bad} has NaN or infinity{why}")
        yield data
        start += len(data)
