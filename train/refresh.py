"""When and how the index follows the weights while they are trained."""

import re
import warnings
from typing import Any, NamedTuple

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from e2erag.background import Background
from e2erag.rag import RAG
from e2erag.retriever.ranks import of_rank_0

PROBE = 64
"""One passage of so many in a row tells how far they have moved, so looking costs a 64th of encoding them all."""
_AT_ONCE = 1 << 14  # rows compared at a time


class Span(NamedTuple):
    """Steps from `start` on and before `stop` (None: to the end), every `every` of them."""

    start: int
    stop: int | None
    every: int


class Schedule:
    """Steps at which something is due, as text: "0-200:50,200-:200" is every 50 steps before step 200 and every 200
    from there on; a number alone goes for the whole run. Step 0 never is: nothing has moved yet."""

    def __init__(self, text: int | str) -> None:
        parts = [part.strip() for part in str(text).split(",")]
        found = [re.fullmatch(r"(?:(\d+)-(\d*):)?(\d+)", part) for part in parts]
        self.spans = [Span(int(m[1] or 0), int(m[2]) if m[2] else None, int(m[3])) for m in found if m]
        ends = [0, *(span.stop for span in self.spans)]
        in_order = all(end is not None and end <= span.start for end, span in zip(ends, self.spans, strict=False))
        some = all(span.every > 0 and (span.stop is None or span.stop > span.start) for span in self.spans)
        if not (all(found) and in_order and some):
            raise ValueError(
                "refresh_every is a number of steps, at least 1, or ranges of steps with one each, one range after the "
                f'other, such as "0-200:50,200-:200"; got {text!r}'
            )

    def due(self, step: int) -> bool:
        """Whether this step is one of them."""
        return step > 0 and any(
            span.start <= step and (span.stop is None or step < span.stop) and (step - span.start) % span.every == 0
            for span in self.spans
        )


class Refresh(L.Callback):
    """Encodes the index anew by a schedule, as far as it has moved: all of it or a share, at once or in the background.

    Notes with every step `drift` (1 − cosine of stored and present vectors when last looked at, mean) and `index_age`
    (steps since the weights that the index, or the newest part of it, was encoded with).
    """

    def __init__(
        self,
        schedule: Schedule,
        drift: float = 0.0,
        share: float = 1.0,
        background: bool = False,
        device: str | None = None,
    ) -> None:
        """
        Args:
            drift: where the index has moved less, a step that is due passes.
            share: of the passages; the runs of `PROBE` in a row whose probe has moved most. 1: all.
            background: encode with a copy of the weights in another process while training goes on; the index is
                exchanged between two steps when it is whole. A run then isn't repeatable to the bit: when it is whole
                depends on the machine. Where rows are pooled from sums over lines that are there, which takes no
                encoding, they are at once.
            device: where the copy computes; None: where the model does.
        """
        self.schedule, self.drift, self.share = schedule, drift, share
        self._background = Background(device) if background else None
        self._begun, self._encoded_at, self._moved, self._step = 0, 0, 0.0, -1

    def state_dict(self) -> dict[str, Any]:
        return {"encoded_at": self._encoded_at, "moved": self._moved, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; what was under way in the background is begun again when it is next due."""
        self._encoded_at, self._moved, self._step = (state_dict[name] for name in ("encoded_at", "moved", "step"))

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        step, rag = trainer.global_step, module.rag
        if step == self._step:  # a step of several batches, which see one index
            return
        self._step = step
        if self._background is not None and self._background.done:
            before = rag._ready()[1].vectors
            self._background.take(rag)
            self._note(self._begun, before, rag)
        if self.schedule.due(step) and not (self._background is not None and self._background.busy):
            self._refresh(step, rag)
        module.beside.update(drift=self._moved, index_age=float(step - self._encoded_at))

    def _refresh(self, step: int, rag: RAG) -> None:
        if self.drift or self.share < 1:
            probed = probe(rag)
            self._moved = float(probed.mean())
            if self._moved < self.drift:
                return
            if self.share < 1:
                rag.refresh(most_moved(rag, probed, self.share))
                self._encoded_at = step
                return
        if self._background is not None and rag.indexer.summed(rag._ready()[0], rag.config.mode) is None:
            self._begun = step
            self._background.start(rag)
            return
        before = rag._ready()[1].vectors
        rag.refresh()
        self._note(step, before, rag)

    def _note(self, step: int, before: Tensor, rag: RAG) -> None:
        """The index is of that step's weights now."""
        self._encoded_at, self._moved = step, _moved(before, rag._ready()[1].vectors)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        if self._background is not None and self._background.busy:
            if self._background.done:
                self._background.check()  # nobody needs it any more, but its error is told
            if not self._encoded_at:
                warnings.warn(
                    f"the refresh begun at step {self._begun} was whole for no step, so all searched the index as it "
                    "was: leave out refresh_background in runs as short",
                    stacklevel=1,
                )
        self._stop()

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._background is not None:
            self._background.stop()


def check_device(name: str) -> None:
    """Refuse a device that isn't here.

    Raises:
        ValueError: it isn't."""
    try:
        device, here = torch.device(name), {"cpu": 1}
        if torch.accelerator.is_available() and (kind := torch.accelerator.current_accelerator()):
            here[kind.type] = torch.accelerator.device_count()
        if (device.index or 0) < here.get(device.type, 0):
            return
        there = ", ".join(f"{count} of {each}" for each, count in here.items())
    except RuntimeError as error:  # no name of one
        there = str(error).strip().splitlines()[0]
    raise ValueError(
        f"refresh_device is a device of this machine, such as cpu or cuda:1, got {name!r} (there: {there})"
    )


def probe(rag: RAG) -> Float[Tensor, " runs"]:
    """How far the passage in the middle of every run has moved since it was stored: 1 − cosine."""
    passages = len(rag._ready()[0].passages)
    starts = torch.arange(0, passages, PROBE)
    return of_rank_0(rag.drift((starts + PROBE // 2).clamp_max(passages - 1)))


def most_moved(rag: RAG, probed: Float[Tensor, " runs"], share: float) -> Int[Tensor, " passages"]:
    """The passages of the runs whose probes have moved most: this share of the runs, at least one."""
    passages = len(rag._ready()[0].passages)
    runs = probed.topk(max(1, round(share * len(probed)))).indices.sort().values
    every = (runs.cpu()[:, None] * PROBE + torch.arange(PROBE)).flatten()
    return every[every < passages]


def _moved(before: Float[Tensor, "passages row"], after: Float[Tensor, "passages row"]) -> float:
    """1 − cosine of each row and the one in its place, mean. The last component, the prior, is no part of a vector."""
    if before.shape != after.shape:  # others were proposed
        return float("nan")
    parts = zip(before.split(_AT_ONCE), after.split(_AT_ONCE), strict=True)
    return 1 - sum(float(F.cosine_similarity(a[:, :-1], b[:, :-1]).sum()) for a, b in parts) / len(before)
