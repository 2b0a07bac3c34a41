"""A run: questions and an indexed system in, the trained system and what happened out."""

import json
import logging
import math
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any, Literal

import lightning as L
from lightning.pytorch.loggers import CSVLogger

from e2erag.artefact import write_file
from e2erag.extract import GateMode
from e2erag.joint import Joint
from e2erag.questions import Question, read_questions
from e2erag.rag import RAG
from e2erag.retriever.ranks import average, rank, ranks
from e2erag.train.calibrate import Calibration, check_reading, fitted, tried
from e2erag.train.callbacks import Checkpoint, CheckpointFolder, CollapseGuard, Progress
from e2erag.train.checkpoint import Batches, is_saved
from e2erag.train.dashboard import draw_run
from e2erag.train.memory import within
from e2erag.train.module import STAGES, TrainModule
from e2erag.train.objectives import TOGETHER, untaught, weights_of
from e2erag.train.parallel import check_started, loader, over_ranks, trainer_settings
from e2erag.train.refresh import Refresh, Schedule, check_device

CHECKPOINT = "checkpoint"
"""Where a run's folder holds its state."""

CALIBRATED, ENOUGH = 64, 16
"""Questions to which τ is fitted where nothing is said of it, and how many there have to be for that."""

_ANY_TIME = ("folder", "checkpoint_every", "resume", "progress", "collapse", "refresh_device")
"""Settings that may be others where a run goes on."""


@dataclass(frozen=True)
class FitConfig:
    """Everything a run is made of.

    Attributes:
        objective: a name in `OBJECTIVES`, or several with weights: {"marginal": 1, "pdist": 0.5}.
        target_temperature: of the targets that some objectives have; see `Options`.
        samples: draws per question of `rloo` and `gumbel`; for the latter fewer than k. None: 4, of `gumbel` at most
            half of k.
        per_token: divide an answer's log p by its length.
        epochs: passes over the questions.
        batch_size: questions read at a time (by each process).
        accumulate: batches to a step of the optimiser, which follows the mean over their questions: four of two
            questions are one of eight, in the memory of two. Exactly so where gate_clip is 0 and a question's loss its
            own, as all but `contrastive`'s are, and where nothing is drawn for a batch (gates, negatives, passages,
            pages to judge); then several processes' step is that of one with all of their questions, too. The last
            step of an epoch takes what is left. Steps are counted so everywhere: rates, refresh, gates' temperature,
            what is logged (its means).
        k: passages read per question while training.
        mined: passages read beside these, found by BM25 with question and answer: a gold passage that the retriever
            can't reach yet gets in. 0 mines none.
        negatives: passages a batch, at most, that are drawn by p(z|x) out of all that none of its questions reads, and
            encoded with gradient: Z moves, in an estimate, as the whole corpus does (`Softmax.draw`). Some 16 to 64;
            few are noise. What is read for one question moves in every Z then, too. 0: each question's Z moves with
            what is read for it alone, whatever the others are; and what would move all passages alike seems to pay, or
            to cost. A gate_clip cuts the slopes of what stands for many as those of one.
        lr_extractor: learning rate, falling linearly to a tenth of itself; likewise those below. It is large because
            its steps follow the gradient (`OPTIMISER`), and goes with the size of the batches.
        lr_retriever: AdamW's, of encoder and adapters.
        lr_generator: of the reader.
        lr_bm25: likewise, of the weight of BM25 in the score (one number, so it needs longer steps).
        lr_temperature: likewise, of log τ where it learns.
        weight_decay: of the retriever's and generator's matrices.
        warmup: share of the steps over which the rates rise.
        freeze: stages that don't learn: extractor, retriever, retriever.query, retriever.passage, generator. With
            extractor.gates an extractor that hasn't been trained keeps every line, and only spans and cuts are learned.
        rerank: passages per question that are found by the stored vectors and encoded afresh before the K best of them
            are read; 0 takes the K best by the stored ones. Some dozens: pairs of them are compared.
        search: "exact": p(z|x) is over every row; "index": training searches as the system does, by a structure of
            faiss that is built again with every refresh, and log Z is an estimate (`SampledIndex.log_z`).
        refresh_every: steps between two encodings of the index, or a schedule: "0-200:50,200-:200" (`Schedule`). In the
            background one that is due while another is under way is left out.
        refresh_drift: where the index has moved less (1 − cosine, mean of a probe), it waits for the next time.
        refresh_share: of the passages that are encoded then: the runs of 64 whose middle passage has moved most.
        refresh_background: encode with a copy of the weights in another process while training goes on (`Refresh`).
        refresh_device: where that copy computes: a second GPU; None: beside the model.
        keep_rate: of the lines to keep.
        cut_rate: of the gaps between lines to cut at.
        gate_weight: how much keeping to these rates weighs against the loss (`gate_divergence`).
        token_price: nats that the loss grows by for reading every token of the corpus rather than none; what reading
            gates let through is charged in proportion, whatever a question has found.
        gate_clip: what one answer may say of a passage's lines: the norm, at most, of its slopes in their log w, less
            their mean (`competing`). 0 takes them as they come.
        gate_explore: nats by which reading gates are lowered at random while training (`Extractor.explored`); 0: not.
            Known trouble: a retriever that learns beside it learns from what is read so, and less (LOG.md, 2026-11-29).
        judged: lines that the extractor judges in a step (`Step.judged`), some ten kilobytes each. A larger corpus
            is judged by pages drawn and pages found; a step's cost grows with it by the scan and some numbers a line.
            0: all.
        calibrate: questions, drawn, to whose answers the retriever's temperature is fitted before the first step
            (`RAG.calibrate`, but over the index that is trained on, with its gates); 0: it begins as it is. None: 64
            where there are at least 16, the retriever learns and passages are read one at a time, else 0; and a sharper
            one alone is taken: that a flatter one is likelier says that what is found is wrong, which training mends.
        gates: "soft", or "sample" for binary concrete noise on top; or "hard", for which the extractor is frozen: the
            others learn on the passages that an index with hard gates holds, without the lines that it drops.
        gate_temperature: of the gates through the first half of the steps, and towards the last; colder is harder.
        negligible: passages with a smaller share of the likelihood are read without gradient (`Step.negligible`), where
            the objective is one whose reader wouldn't notice (`objectives.negligible`); 0: all are read with it.
        memory_budget: bytes that the activations of a step may take, of encoder and reader together, as their longest
            rows measure (`chunks`): `token_budget` is lowered to it, and `held_tokens` set to hold what fits; the rest
            is computed a second time. 0: both as configured. Beside it stand weights, their gradients, the optimiser's
            two numbers a weight, and `judged` lines.
        clip: largest gradient norm per stage; 0 clips nothing.
        collapse: "warn" when training looks collapsed, "stop" it then, or "ignore" that (`CollapseGuard`).
        seed: of shuffling, gate noise and what is drawn.
        folder: where `metrics.csv`, `config.json` and the dashboard `report.png` go; None writes nothing.
        checkpoint_every: steps after which the run's state is saved in `folder`, in place of the one before: what
            learns, two numbers a weight of the optimiser, and the index that is searched. 0: never.
        resume: go on from the state in `folder`, if there is one, as if the run had never stopped: with a system,
            settings and questions as they were when it began. (The index is encoded as at a beginning first.)
        progress: whether to show a bar.
    """

    objective: dict[str, float | int] | str = "marginal"
    target_temperature: float = 0.1
    samples: int | None = None
    per_token: bool = False
    epochs: int = 3
    batch_size: int = 4
    accumulate: int = 1
    k: int = 4
    mined: int = 0
    negatives: int = 0
    lr_extractor: float = 3e-2
    lr_retriever: float = 5e-5
    lr_generator: float = 5e-5
    lr_bm25: float = 1e-2
    lr_temperature: float = 1e-2
    weight_decay: float = 0.01
    warmup: float = 0.1
    freeze: tuple[str, ...] = ()
    rerank: int = 0
    search: Literal["exact", "index"] = "exact"
    refresh_every: int | str = 4
    refresh_drift: float = 0.0
    refresh_share: float = 1.0
    refresh_background: bool = False
    refresh_device: str | None = None
    keep_rate: float = 0.8
    cut_rate: float = 0.1
    gate_weight: float = 0.3
    token_price: float = 0.2
    gate_clip: float = 1.0
    gate_explore: float = 0.0
    judged: int = 32_768
    calibrate: int | None = None
    gates: GateMode = "soft"
    gate_temperature: tuple[float, float] = (1.0, 0.3)
    negligible: float = 0.02
    memory_budget: int = 0
    clip: float = 1.0
    collapse: Literal["warn", "stop", "ignore"] = "warn"
    seed: int = 0
    folder: str | Path | None = None
    checkpoint_every: int = 0
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        weights_of(self.objective)
        if isinstance(self.freeze, str):
            object.__setattr__(self, "freeze", (self.freeze,))
        if not 0 < self.target_temperature < math.inf:
            raise ValueError(
                f"target_temperature must be positive, got {self.target_temperature}: 1 leaves targets as is"
            )
        unknown = [name for name in self.freeze if name not in STAGES]
        if unknown:
            raise ValueError(f"freeze takes stages out of {', '.join(STAGES)}, got {', '.join(unknown)}")
        if self.gates not in ("soft", "sample", "hard"):
            raise ValueError(f"gates must be soft, sample or hard, got {self.gates!r}")
        if self.gates == "hard" and "extractor" not in self.freeze:
            raise ValueError('hard gates have no slope: set freeze=("extractor",) with them, or gates="soft"')
        if self.gates == "hard" and (self.refresh_background or self.refresh_share < 1):
            raise ValueError(
                "with hard gates a refresh proposes passages anew: leave out refresh_background and refresh_share"
            )
        if self.collapse not in ("warn", "stop", "ignore"):
            raise ValueError(f"collapse must be warn, stop or ignore, got {self.collapse!r}")
        if self.search not in ("exact", "index"):
            raise ValueError(f"search must be exact or index, got {self.search!r}")
        Schedule(self.refresh_every)
        if not (self.refresh_drift >= 0 and 0 < self.refresh_share <= 1):
            raise ValueError(
                f"refresh_drift is at least 0 and refresh_share in (0, 1], got {self.refresh_drift} and "
                f"{self.refresh_share}: 0 and 1 encode everything whenever it is due"
            )
        if self.refresh_background and self.refresh_share < 1:
            raise ValueError(
                f"a refresh in the background is of the whole index, got refresh_share={self.refresh_share}: leave "
                "one of the two out"
            )
        if self.refresh_device is not None and not self.refresh_background:
            raise ValueError(
                f"refresh_device={self.refresh_device!r} is where a refresh in the background computes: set "
                "refresh_background too, or leave it out"
            )
        if "gumbel" in weights_of(self.objective) and not 0 < self.drawn < self.k:
            raise ValueError(
                f"gumbel draws `samples` of the k passages read, fewer than all, and got samples={self.samples} of "
                f"k={self.k}: lower samples, or read more"
            )
        if 0 < self.rerank < self.k:
            raise ValueError(f"rerank must be 0 or at least k = {self.k}, got {self.rerank}: K are taken out of them")
        if not all(0 < temperature < math.inf for temperature in self.gate_temperature):
            raise ValueError(
                f"gate_temperature is two numbers above 0, got {self.gate_temperature}: 1 is a plain sigmoid"
            )
        rates = [field.name for field in fields(self) if field.name.startswith("lr_")]
        for name in (*rates, "weight_decay", "gate_weight", "token_price", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a number, at least 0 (which is none of it), got {getattr(self, name)}")
        for name in ("keep_rate", "cut_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is a share between 0 and 1 and neither of them, got {getattr(self, name)}: gate_weight=0 "
                    'asks for no share, freeze=("extractor.gates",) keeps every line'
                )
        if not 0 <= self.negligible < 1:
            raise ValueError(f"negligible is a share of the likelihood in [0, 1), got {self.negligible}: 0 reads all")
        if not self.gate_clip >= 0:
            raise ValueError(f"gate_clip is a norm, at least 0 (which clips nothing), got {self.gate_clip}")
        if not self.gate_explore >= 0:
            raise ValueError(f"gate_explore is in nats, at least 0 (no line is lowered), got {self.gate_explore}")
        if (self.checkpoint_every or self.resume) and self.folder is None:
            raise ValueError(
                "a run's state is saved in its folder: set folder too, or leave out checkpoint_every and resume"
            )
        none = ("mined", "negatives", "rerank", "judged", "calibrate", "memory_budget", "checkpoint_every")
        for name in ("epochs", "batch_size", "accumulate", "k", "samples", *none):
            least, value = 0 if name in none else 1, getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    @property
    def drawn(self) -> int:
        """Passages that `rloo` and `gumbel` draw."""
        if self.samples is not None:
            return self.samples
        return min(4, self.k // 2) if "gumbel" in weights_of(self.objective) else 4

    def changed(self, **changes: Any) -> "FitConfig":
        """A copy with other values; a wrong name is answered with the nearest right one."""
        names = [field.name for field in fields(self)]
        for name in changes:
            if name not in names:
                near = get_close_matches(name, names, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
                raise TypeError(f"fit has no setting {name!r}: {hint}")
        return replace(self, **changes)


@dataclass(frozen=True)
class Run:
    """What a run gave.

    Attributes:
        steps: optimiser steps.
        seconds: of training.
        history: logged values, a dict per step.
        folder: where `metrics.csv` is, if anything was written.
        calibration: of the temperature that the run began with, if it was fitted.
    """

    steps: int
    seconds: float
    history: list[dict[str, float]]
    folder: Path | None
    calibration: Calibration | None = None


def fit(rag: RAG, questions: str | Path | Sequence[Any], config: FitConfig | None = None, **changes: Any) -> Run:
    """Train extractor, retriever and generator together on answers over what `rag` has indexed: −log p(y|x), or another
    objective.

    No page or passage label is used, except by `contrastive` where a question has one: a passage of that page is read
    then, whatever the retriever finds. Afterwards the index is rebuilt with the trained weights, in the system's own
    gate mode. Where the system's index lies in a folder, so does what is trained over (`RAG.in_mode`): memory then
    holds a batch of rows at a time, and what is mapped of them.

    Started by torchrun, every process takes its share of each epoch's questions (`batch_size` is a process's), of the
    passages to encode and of the rows to search; gradients are averaged (`over_ranks`). All end with the same
    weights. An index in a folder is one that all processes reach; rank 0 writes there, and index within `over_ranks`.
    (Where gates act on pooling alone and rows are in memory, every process encodes all of the passages.)

    Args:
        questions: a question file, or rows with `question` and `answers`.
        config, changes: a `FitConfig`, and single settings on top of it.

    Raises:
        QuestionError: rows without their columns.
        RuntimeError: nothing is indexed, or the loss is not a number.
    """
    config = (config or FitConfig()).changed(**changes)
    kind = _checked(rag, config)
    rows = read_questions(questions)
    check_started(rag)
    L.seed_everything(config.seed, verbose=False)
    folder = None if config.folder is None else Path(config.folder)
    logger = _logger(folder, config)
    saved = None if folder is None else folder / CHECKPOINT
    going_on = config.resume and saved is not None and is_saved(saved)
    batches = loader(rows, config.batch_size, config.seed)
    weights = weights_of(config.objective)
    read_each = config.k + config.mined + ("contrastive" in weights)
    reader_learns = "generator" not in untaught(weights)
    learning = nullcontext() if "extractor" in config.freeze else rag.model.extractor.learning(config.gate_explore)
    with (
        over_ranks(rag),
        rag.in_mode("hard" if config.gates == "hard" else "soft", kind),
        _frozen(rag.model, config.freeze),
        within(rag, config.memory_budget, rows, config.batch_size, read_each, config.negatives, reader_learns),
        _calibrated(rag, config, rows, going_on) as calibration,  # after what may refuse: it leaves τ changed
        learning,
        _quiet(),
    ):
        module = TrainModule(rag, config, config.epochs * -(-len(batches) // config.accumulate), calibration)
        home = rag.model.device
        asked = -(-len(rows) // ranks()) * ranks()  # an epoch's; some twice where ranks can't share them evenly
        callbacks = _callbacks(config, module, batches, asked * config.epochs, _beginning(config, rows))
        trainer = L.Trainer(
            **trainer_settings(home),
            use_distributed_sampler=False,
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate,
            logger=logger,
            callbacks=callbacks,
            plugins=[CheckpointFolder(each.check) for each in callbacks if isinstance(each, Checkpoint)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=1,
        )
        start = perf_counter()
        try:
            with _interruptible():
                trainer.fit(module, batches, ckpt_path=saved if going_on else None)
        finally:
            rag.to(home)  # Lightning leaves a model on the CPU
            if folder is not None and rank() == 0 and module.history:
                draw_run(module.history, folder / "report.png")  # of a run that failed above all
        seconds = perf_counter() - start
    return Run(trainer.global_step, seconds, module.history, folder, module.calibration)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt: Lightning would end the process, and ignore any other one."""
    at_first = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, at_first)
        raise KeyboardInterrupt from None


def _checked(rag: RAG, config: FitConfig) -> str:
    """The kind of index that is trained over.

    Raises:
        ValueError: this system can't be trained so."""
    if rag.model.retriever.config.tied and any(name.startswith("retriever.") for name in config.freeze):
        raise ValueError("the towers are tied, so one can't be frozen alone: freeze retriever, or use tied=False")
    names, together = weights_of(config.objective), rag.model.reading != "marginal"
    apart = [name for name in names if name not in TOGETHER]
    if together and apart:
        raise ValueError(
            f'{apart[0]} draws passages, and with reading="{rag.model.reading}" all are given the same likelihood: '
            f'take one of {", ".join(TOGETHER)}, or RAGConfig(reading="marginal")'
        )
    read = config.k + config.mined
    single = "retriever" in untaught(names, read, together) and "retriever" not in untaught(names, 2, together)
    if single and not any(name.startswith("retriever") for name in config.freeze):
        warnings.warn(
            f"with one passage read per question {' and '.join(names)} has nothing for the retriever to learn from: "
            "raise k, or freeze retriever",
            stacklevel=3,
        )
    if "contrastive" in names and config.batch_size * ranks() == 1:
        warnings.warn(
            "contrastive compares the questions of a batch, and one question has none to compare with (accumulate "
            "doesn't join batches): raise batch_size",
            stacklevel=3,
        )
    if rag.model.extractor.config.straight_through and config.gates == "soft":
        warnings.warn(
            f"ExtractorConfig.straight_through is of gates that are drawn, and gates={config.gates!r}: set "
            'gates="sample", or leave it out',
            stacklevel=3,
        )
    if config.calibrate:
        check_reading(rag)
    if config.refresh_device is not None:
        check_device(config.refresh_device)
    if ranks() > 1 and config.refresh_background:
        raise ValueError("ranks encode together, and can't while they train: leave out refresh_background")
    kind = rag.config.index.kind if config.search == "index" else "exact"
    if kind == "milvus" or (ranks() > 1 and kind != "exact"):
        why = "is for serving" if kind == "milvus" else "can't be shared by ranks"
        raise ValueError(
            f'search="index" trains over the system\'s own index, and one of kind {kind!r} {why}: leave it out, and '
            "training searches every row"
        )
    return kind


@contextmanager
def _calibrated(rag: RAG, config: FitConfig, rows: Sequence[Question], going_on: bool) -> Iterator[Calibration | None]:
    """The temperature that the run begins with, fitted where that is wanted and the run doesn't go on."""
    count = config.calibrate
    if count is None:
        fits = len(rows) >= ENOUGH and "retriever" not in config.freeze and rag.model.reading == "marginal"
        count = CALIBRATED if fits else 0
    if not count or going_on:
        yield None
        return
    some = Random(config.seed).sample(rows, min(count, len(rows)))
    losses = tried(rag, some, config.k)
    shared = average({str(temperature): loss for temperature, loss in losses.items()})  # ranks may round otherwise
    every = {float(temperature): loss for temperature, loss in shared.items()}
    yield fitted(rag, every, sharper=config.calibrate is None)


def _callbacks(
    config: FitConfig, module: TrainModule, batches: Batches, questions: int, made_with: str
) -> list[L.Callback]:
    """What happens beside the steps; the state is saved last, when the others have seen a step."""
    settings = config.refresh_drift, config.refresh_share, config.refresh_background, config.refresh_device
    found: list[L.Callback] = [Refresh(Schedule(config.refresh_every), *settings)]
    if config.collapse != "ignore":
        found.append(CollapseGuard(config.collapse == "stop"))
    if config.progress and rank() == 0:
        found.append(Progress(questions))
    if config.folder is not None:
        place = Path(config.folder) / CHECKPOINT
        found.append(Checkpoint(module, batches, place, config.checkpoint_every, made_with))
    return found


def _beginning(config: FitConfig, rows: Sequence[Question]) -> str:
    """A hash of what a run begins with beside its system."""
    config = replace(config, objective=weights_of(config.objective))
    settings = {name: value for name, value in asdict(config).items() if name not in _ANY_TIME}
    return sha256(json.dumps([settings, [asdict(row) for row in rows]]).encode()).hexdigest()


@contextmanager
def _frozen(model: Joint, stages: Sequence[str]) -> Iterator[None]:
    """These stages don't learn; what of them could learn before can afterwards."""
    held = [p for name in stages for p in model.get_submodule(name).parameters() if p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's banners, and its warnings about what is meant here: no dropout (the K passages scored
    afresh must agree with the rest of Z, which comes from the index) and texts loaded without worker processes."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            log.setLevel(level)


def _logger(folder: Path | None, config: FitConfig) -> CSVLogger | bool:
    if folder is None or rank():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "config.json", json.dumps(asdict(config), indent=2, default=str))  # a Path
    return CSVLogger(str(folder), name="", version="")
