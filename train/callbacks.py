"""What happens beside the steps: a collapse is warned of, and progress is shown."""

import sys
import warnings
from collections import Counter
from collections.abc import Collection
from typing import Any

import lightning as L
from tqdm import tqdm

from e2erag.retriever import OVERFETCH
from e2erag.retriever.ranks import ranks
from e2erag.train.objectives import untaught


class CollapseGuard(L.Callback):
    """Warns, once a kind, when training has looked collapsed for `PATIENCE` steps on end; "stop" also ends the run."""

    PATIENCE = 10

    def __init__(self, stop: bool) -> None:
        self.stop = stop
        self.streak: Counter[str] = Counter()
        self.alike = 0.0  # `distinct` of the present step, if all questions of each batch find the same

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.alike += module.weight / len(batch)
        if not module.stepped:
            return
        alike, self.alike = self.alike, 0.0
        passages = len(module.rag.corpus.passages)
        choice = passages > OVERFETCH * module.config.k  # of fewer, which overlap, every question must find the same
        seen = symptoms(module.history[-1], 1 / alike, choice, untaught(module.weights))
        self.streak = Counter({symptom: self.streak[symptom] + 1 for symptom in seen})
        for symptom, steps in self.streak.items():
            if steps == self.PATIENCE:
                # In this module's name: Lightning, which calls, is kept quiet.
                warnings.warn(f"step {trainer.global_step}: for {steps} steps, {symptom}", stacklevel=1)
                trainer.should_stop = trainer.should_stop or self.stop


def symptoms(
    row: dict[str, float], questions: int | float, choice: bool = True, unmoved: Collection[str] = ()
) -> list[str]:
    """What a step's figures say is wrong, and what to do about it.

    Args:
        questions: of a batch; the harmonic mean of a step's.
        choice: whether the corpus has so many passages that questions can find different ones.
        unmoved: stages that no gradient is meant to reach."""
    found = []
    if choice and questions > 1 and row["distinct"] <= 1.1 / questions:
        found.append(
            "every question of a batch found the same passages (`distinct`): the retriever is collapsing. Lower "
            "lr_retriever and lr_extractor, or refresh the index more often (refresh_every)"
        )
    if row["entropy"] < 1e-3 and row["utility"] <= 0:
        found.append(
            "p(z|x) is all on one passage that doesn't help (`entropy`, `utility`): raise the retriever's temperature, "
            "lower its learning rate, or look whether the answers stand in the documents at all (`answer_found`)"
        )
    for gate, aim in (("gate_retrieve", "finding"), ("gate_read", "reading")):
        if row[gate] < 0.05:
            found.append(
                f"nearly every line is dropped for {aim} (`{gate}`): raise gate_weight or keep_rate, or lower "
                "token_price"
            )
    for name, value in row.items():
        if name.startswith("gradient_") and value == 0:
            stage = name.removeprefix("gradient_")
            if stage not in unmoved:
                found.append(
                    f"no gradient reaches the {stage} (`{name}`): freeze it, or look whether anything is found and read"
                )
    return found


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
        if module.stepped:
            loss = module.history[-1]["loss"]
            self.mean = loss if self.mean is None else 0.9 * self.mean + 0.1 * loss
            self.bar.set_postfix(loss=f"{self.mean:.2f}", refresh=False)
        self.bar.update(len(batch) * ranks())

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        self.bar.close()
