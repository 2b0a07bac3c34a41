"""What happens beside the steps: the index is refreshed, and progress is shown."""

import sys
from typing import Any

import lightning as L
from tqdm import tqdm


class Refresh(L.Callback):
    """Encode the whole index anew every N steps, so that what a search finds is never older than that."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step and step % self.every == 0:
            module.rag.refresh()


class Progress(L.Callback):
    """A bar over questions: loss, questions per second, time left."""

    def __init__(self, questions: int) -> None:
        self.questions = questions

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=self.questions,
            desc="training",
            unit=" questions",
            bar_format="{desc}: {percentage:3.0f}% |{bar:30}| {n_fmt}/{total_fmt}{unit} [{elapsed}, {remaining} left, "
            "{rate_noinv_fmt}{postfix}]",
            mininterval=0.5 if terminal else 15,
        )
        self.mean: float | None = None

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = module.history[-1]["loss"]
        self.mean = loss if self.mean is None else 0.9 * self.mean + 0.1 * loss
        self.bar.set_postfix(loss=f"{self.mean:.2f}", refresh=False)
        self.bar.update(len(batch))

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        self.bar.close()
