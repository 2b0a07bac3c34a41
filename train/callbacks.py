"""What happens beside the steps: a collapse is warned of, progress is shown, and the run's state is saved."""

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from tqdm import tqdm

from e2erag.corpus import Corpus
from e2erag.retriever import OVERFETCH
from e2erag.retriever.ranks import device, gathered, rank, ranks
from e2erag.train.calibrate import Calibration
from e2erag.train.checkpoint import Batches, read_state, write_state
from e2erag.train.module import TrainModule
from e2erag.train.objectives import untaught

SAME = (
    "every question of a step found the same passages (`distinct`): the retriever is collapsing. Lower "
    "lr_retriever and lr_extractor, or refresh the index more often (refresh_every)"
)


class CollapseGuard(L.Callback):
    """Warns when training has looked collapsed for `PATIENCE` steps on end; "stop" also ends the run.

    Of one question can't be seen whether all find the same: a step of one leaves that count as it is."""

    PATIENCE = 10

    def __init__(self, stop: bool) -> None:
        self.stop = stop
        self.streak: Counter[str] = Counter()
        self.questions = 0  # of the present step, so far

    def state_dict(self) -> dict[str, Any]:
        return {"streak": dict(self.streak)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.streak = Counter(state_dict["streak"])

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.questions += len(batch)
        if not module.stepped:
            return
        questions, self.questions = self.questions, 0
        passages = len(module.rag.corpus.passages)
        choice = passages > OVERFETCH * module.config.k  # of fewer, which overlap, every question must find the same
        together, read = module.model.reading != "marginal", module.config.k + module.config.mined
        seen = symptoms(module.history[-1], questions, choice, untaught(module.weights, read, together))
        unseen = {SAME: self.streak[SAME]} if questions == 1 and self.streak[SAME] else {}
        self.streak = Counter({symptom: self.streak[symptom] + 1 for symptom in seen} | unseen)
        for symptom in seen:
            if (steps := self.streak[symptom]) == self.PATIENCE:
                # In this module's name: Lightning, which calls, is kept quiet.
                warnings.warn(f"step {trainer.global_step}: for {steps} steps, {symptom}", stacklevel=1)
                trainer.should_stop = trainer.should_stop or self.stop


def symptoms(row: dict[str, float], questions: int, choice: bool = True, unmoved: Collection[str] = ()) -> list[str]:
    """What a step's figures say is wrong, and what to do about it.

    Args:
        questions: of a step.
        choice: whether the corpus has so many passages that questions can find different ones.
        unmoved: stages that no gradient is meant to reach."""
    found = []
    if choice and questions > 1 and row["distinct"] <= 1.1 / questions:
        found.append(SAME)
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
        self.questions, self.done = questions, 0

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = state_dict["done"]

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=self.questions,
            initial=self.done,
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
        self.done += len(batch) * ranks()

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        self.bar.close()


class CheckpointFolder(CheckpointIO):
    """Lightning's checkpoints as folders with a manifest of hashes."""

    def __init__(self, check: Callable[[dict[str, Any]], None]) -> None:
        """`check`: of what is loaded, before anything is restored from it."""
        self.check = check

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_state(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        state = read_state(Path(path))
        self.check(state)
        return state

    def remove_checkpoint(self, path: Any) -> None:
        """There is one, and the next takes its place."""


class Checkpoint(L.Callback):
    """A run's state beside weights and optimiser, saved after every so many steps: random numbers, the order of
    questions, figures so far, and the index that is searched, which may be stale."""

    def __init__(self, module: TrainModule, batches: Batches, folder: Path, every: int, made_with: str) -> None:
        """
        Args:
            every: steps; 0 saves nothing, and goes on from what was saved.
            made_with: settings and questions; a state that was saved with others is refused."""
        self.module, self.batches, self.folder, self.every, self.made_with = module, batches, folder, every, made_with
        self._taken = 0

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """What was logged is logged again, for Lightning begins its file anew."""
        steps = -(-len(self.batches) // module.config.accumulate)
        for step, row in enumerate(module.history if trainer.logger is not None else ()):
            figures = {name: torch.tensor(value, dtype=torch.float32) for name, value in row.items()}
            trainer.logger.log_metrics({**figures, "epoch": step // steps}, step)  # type: ignore[union-attr, dict-item]

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._taken = batch_idx + 1
        if self.every and module.stepped and trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.folder)

    def state_dict(self) -> dict[str, Any]:
        corpus, index = self.module.rag._ready()
        return {
            "made_with": self.made_with,
            "calibration": self.module.calibration,
            "history": self.module.history,
            "beside": self.module.beside,
            "gates": self.module.noise.get_state(),
            "passages": gathered(self._drawn.get_state().to(device())),  # each rank draws for its own questions
            "torch": torch.get_rng_state(),
            "batches": self.batches.state(self._taken),
            "text": corpus.text,
            "spans": corpus.spans.spans,
            "rows": index.vectors,
            "manifest": dict(index.manifest),
        }

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Refuse one that was saved with other settings, questions, documents or another number of processes.

        Raises:
            ValueError: it was."""
        saved, rag = checkpoint["callbacks"][self.state_key], self.module.rag
        drawn, other, frozen = saved["passages"], {"corpus"}, self.module.config.freeze
        if self._fits(saved):
            other = {*rag.indexer.changed(saved["manifest"], self._corpus(saved), rag.config.mode)}
        learning = {"extractor": ("extractor",), "encoder": ("retriever", "retriever.passage")}  # have changed since
        changed = sorted(other - {name for name, stages in learning.items() if not {*stages} & {*frozen}})
        if len(drawn) != ranks():
            changed.append(f"{ranks()} processes for {len(drawn)}")
        if saved["made_with"] != self.made_with:
            changed.append("settings or questions")
        if changed:
            raise ValueError(
                f"the run in {self.folder.parent} can't go on, for it began with something else "
                f"({', '.join(changed)}): begin with the same system, questions, FitConfig and release, or name "
                "another folder"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        module, rag = self.module, self.module.rag
        if (calibration := state_dict["calibration"]) is not None:
            module.calibration, retriever = Calibration(*calibration), rag.model.retriever
            retriever.config = replace(retriever.config, temperature=module.calibration.temperature)
        module.history, module.beside = state_dict["history"], state_dict["beside"]
        module.noise.set_state(state_dict["gates"])
        self._drawn.set_state(state_dict["passages"][rank()])
        torch.set_rng_state(state_dict["torch"])
        self.batches.go_on(state_dict["batches"])
        corpus = self._corpus(state_dict)
        corpus.text = state_dict["text"].to(corpus.text.device)
        rag.index_ = rag.indexer.restored(corpus, state_dict["rows"], state_dict["manifest"], rag.config.index)
        rag.corpus = corpus

    def _fits(self, saved: dict[str, Any]) -> bool:
        """Whether the candidates of then can be ones of what is indexed."""
        corpus = self.module.rag._ready()[0]
        if "spans" not in saved:  # by an earlier version
            return False
        document, start, stop, _ = saved["spans"].unbind(1)
        if len(saved["text"]) != len(corpus) or bool((document >= len(corpus.documents)).any()):
            return False
        first = torch.from_numpy(corpus.first_line)
        return bool(((start >= first[document]) & (stop <= first[document + 1])).all())

    def _corpus(self, saved: dict[str, Any]) -> Corpus:
        """What is indexed, with the candidates of then: with hard gates they go by the weights of then."""
        rag = self.module.rag
        corpus = copy(rag._ready()[0])
        if not torch.equal(saved["spans"], corpus.spans.spans):
            corpus.take(saved["spans"], rag.model.extractor, rag.config.overlap)
        return corpus

    @property
    def _drawn(self) -> torch.Generator:
        assert self.module.options.noise is not None
        return self.module.options.noise
