"""What a build of an index will take, told before it begins."""

import errno
import shutil
from typing import NamedTuple


class Estimate(NamedTuple):
    """What a build will take.

    Attributes:
        disk: bytes of rows to be written; the old version stays beside them until the new one is whole.
        memory: bytes of rows held at a time, as encoded and as stored.
        structure: bytes of a search structure, of memory and, beside rows in a folder, of disk.
        seconds: of encoding, without the structure, which the first search builds; None where that is too little to be
            measured first.
    """

    disk: int
    memory: int
    structure: int = 0
    seconds: float | None = None

    def check_room(self, folder: str) -> None:
        """Refuse what a folder's disk has no room for, rows and structure, before anything is written to it."""
        free = shutil.disk_usage(folder).free
        if free < self.disk + self.structure:
            raise OSError(
                errno.ENOSPC,
                f"the index needs {self}, and {free / 1e6:,.1f} MB are free; nothing was written: make room, or store "
                "float16",
                folder,
            )

    def __str__(self) -> str:
        disk, memory = ((each + self.structure) / 1e6 for each in (self.disk, self.memory))
        time = "" if self.seconds is None else f", about {self.seconds / 60:,.1f} minutes to encode"
        return f"{f'{disk:,.1f} MB of disk, ' if disk else ''}{memory:,.1f} MB of memory{time}"
