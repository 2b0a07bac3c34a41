"""A run's state on disk, from which it goes on as if it had never stopped: tensors and JSON, nothing pickled."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from e2erag.artefact import ManifestError, check_folder, write_folder
from e2erag.questions import Question

TENSORS, REST = "tensors.safetensors", "rest.json"


def write_state(state: Mapping[str, Any], folder: Path) -> None:
    """Nested dicts, lists and tuples of tensors and plain values, in place of what was there.

    Raises:
        TypeError: of anything else."""
    tensors: dict[str, Tensor] = {}
    rest = _apart(state, tensors)
    with write_folder(folder) as new:
        save_file(tensors, new / TENSORS)
        (new / REST).write_text(json.dumps(rest), encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """What was written.

    Raises:
        ManifestError: a file is missing or has changed."""
    check_folder(folder)
    rest, tensors = (folder / REST).read_text(encoding="utf-8"), load_file(folder / TENSORS)
    found: dict[str, Any] = _together(json.loads(rest), tensors)
    return found


def is_saved(folder: Path) -> bool:
    """Whether there is one; what a kill in the middle of an exchange has left aside is put back first."""
    with suppress(ManifestError):  # there is none, or `read_state` says what is wrong
        check_folder(folder, hashes=False)
    return folder.exists()


def _apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Tensors by number and the rest as JSON: dicts as pairs, since their keys may be numbers."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"pairs": [[key, _apart(each, tensors)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [_apart(each, tensors) for each in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"a checkpoint holds tensors and plain values, got {type(value).__name__}")


def _together(value: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "pairs":
        return {key: _together(each, tensors) for key, each in inside}
    if kind == "value":
        return inside
    parts = [_together(each, tensors) for each in inside]
    return tuple(parts) if kind == "tuple" else parts


class Batches(DataLoader[Question]):
    """Batches of an epoch, from any on: its state is where the order of questions began, and how many were taken."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self._began: Tensor | None = None
        self._skip = 0

    def state(self, taken: int) -> dict[str, Any]:
        """After so many batches of the present epoch; after all of them, that of the next before its first."""
        over = taken == len(self)
        order = self.generator.get_state() if over else self._began
        epoch = getattr(self.sampler, "epoch", 0) + over  # on which ranks' order depends
        return {"order": order, "epoch": epoch, "taken": taken % len(self)}

    def go_on(self, state: dict[str, Any]) -> None:
        """Begin the next epoch there."""
        self.generator.set_state(state["order"])
        if isinstance(self.sampler, DistributedSampler):
            self.sampler.set_epoch(state["epoch"])
        self._skip = state["taken"]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._began, skip = self.generator.get_state(), self._skip
        self._skip = 0
        batches = super().__iter__()
        for _ in range(skip):
            next(batches)
        return batches
