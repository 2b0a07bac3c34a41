"""The LightningModule: one loss, one learning rate per stage, and what shows that training is healthy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from e2erag.evaluation import on_gold_page
from e2erag.extract import Extraction
from e2erag.questions import Question
from e2erag.rag import RAG
from e2erag.retriever.ranks import average, average_gradients, rank
from e2erag.train.calibrate import Calibration
from e2erag.train.health import answer_found, distinct, health, target_entropy
from e2erag.train.objectives import COMPARING, Options, negligible, weighted, weights_of

if TYPE_CHECKING:
    from e2erag.train.fit import FitConfig

STAGES = ("extractor", "extractor.gates", "retriever", "retriever.query", "retriever.passage", "generator")
"""Names that `freeze` takes: stages, and parts of them."""

OPTIMISER: dict[str, dict[str, Any]] = {"extractor": {"betas": (0.0, 0.999), "eps": 0.1}}
"""AdamW's settings where they aren't the usual ones. √v is small beside the extractor's ε, so it takes steps along the
gradient. AdamW's usual steps move every weight as far, whether hundreds of answers agree on it or one speaks alone, and
give the last batches more weight than the first."""


OF_A_STEP = {"distinct"}
"""Figures that aren't means over the batches of a step, but over as much of it as there has been."""


class TrainModule(L.LightningModule):
    """Trains the joint model of a RAG over its indexed corpus."""

    def __init__(self, rag: RAG, config: "FitConfig", steps: int, calibration: Calibration | None = None) -> None:
        super().__init__()
        self.calibration = calibration
        self.strict_loading = False  # see `on_save_checkpoint`
        self.rag, self.config, self.steps = rag, config, max(steps, 1)
        self.model = rag.model
        self.history: list[dict[str, float]] = []  # a row per step
        self.weight = 1.0  # share of the last batch among its step's questions
        self.stepped = False  # whether that was its step's last
        self._row: dict[str, float] = {}  # of a step some of whose batches are still to come
        self._found: list[Tensor] = []  # the passages that these have found
        self._seen = 0.0  # share of the step that this row is of
        self.beside: dict[str, float] = {}  # figures of what happens beside the steps, noted with each
        self.noise = torch.Generator().manual_seed(config.seed)
        self.weights = weights_of(config.objective)
        # Gates, and where in the rest negatives stand, are drawn alike on every rank, since all share the corpus;
        # passages read, for a rank's own questions.
        drawn = torch.Generator().manual_seed(config.seed + 1 + rank())
        self.options = Options(config.target_temperature, config.drawn, config.per_token, drawn)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Weights that don't learn are left out: they are there already where a run goes on. Not so τ and β, which may
        have been fitted."""
        fitted = {id(p) for p in self.rag.model.retriever.parameters(recurse=False)}
        learns = {name for name, p in self.named_parameters() if p.requires_grad or id(p) in fitted}
        learns |= {name for name, _ in self.named_buffers()}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in learns}

    def transfer_batch_to_device(self, batch: list[Question], device: torch.device, index: int) -> list[Question]:
        return batch  # texts; their tokens are made where the model is

    def training_step(self, batch: list[Question], number: int) -> Tensor:
        c = self.config
        share, tail = negligible(self.weights, c.negligible, self.options)
        self.weight, self.stepped = self._of_its_step(number, len(batch))
        terms = self.rag.terms(
            batch, c.k, c.gates, self.noise, gold="contrastive" in self.weights,
            rerank=c.rerank, mined=c.mined, negatives=c.negatives, judged=c.judged,
            slope_limit=c.gate_clip * self.weight / len(batch),  # the loss is a mean over a step's questions
            negligible=share, tail=tail, alone=bool(COMPARING & self.weights.keys()),
        )  # fmt: skip
        if "contrastive" in self.weights:
            terms = replace(terms, gold=gold(self.rag, batch, terms.ids))
        losses = {name: loss.mean() for name, loss in weighted(self.weights, terms, self.options).items()}
        loss = torch.stack(list(losses.values())).sum()
        if not loss.requires_grad and "extractor" in c.freeze:  # else keep rates and token price still teach gates
            raise ValueError(
                f"nothing that isn't frozen learns from {' and '.join(self.weights)}: leave a stage it teaches out of "
                f"freeze ({', '.join(c.freeze)}), or take another objective"
            )
        divergence = gate_divergence(terms.gates.extraction, self.config.keep_rate, self.config.cut_rate)
        self._found.append(terms.ids[:, : c.k].flatten())
        parts = {f"loss_{name}": value for name, value in losses.items()} if len(losses) > 1 else {}
        self._note(
            loss=loss,
            **parts,
            divergence=divergence,
            tokens_kept=terms.tokens_kept,
            answer_found=answer_found(self.rag, batch, terms.ids[:, : c.k]),  # not what was mined or named
            **target_entropy(terms, self.weights, self.options),
            distinct=distinct(torch.cat(self._found)),
            **health(terms, self.model.extractor, c.k),
            **self.beside,
        )
        total = loss + self.config.gate_weight * divergence + self.config.token_price * terms.tokens_kept
        return self.weight * c.accumulate * total  # Lightning divides by `accumulate`, however many there are

    def _of_its_step(self, number: int, questions: int) -> tuple[float, bool]:
        """A batch's share of the questions of its step, and whether it is the last there; `number` is the epoch's."""
        c = self.config
        if c.accumulate == 1:
            return 1.0, True
        loader = self.trainer.train_dataloader
        assert loader is not None  # in a step there is one
        epoch = len(loader.sampler)  # questions, of this rank
        begin = number // c.accumulate * c.accumulate * c.batch_size
        step = min(c.accumulate * c.batch_size, epoch - begin)
        return questions / step, number * c.batch_size + questions == begin + step

    def _note(self, **values: Tensor | float) -> None:
        """Means over the ranks, and over the batches of a step by weight; in `history`, and logged, when it is whole.

        Raises:
            RuntimeError: a loss that isn't a number, on every rank, so that none waits for another."""
        row = average(_numbers(values))
        self._row = {name: self._row.get(name, 0.0) + self.weight * value for name, value in row.items()}
        self._seen += self.weight
        diverged = not math.isfinite(row["loss"])
        if self.stepped or diverged:
            mean = {name: value / self._seen for name, value in self._row.items()}  # of a step that diverged a part
            mean |= {name: row[name] for name in OF_A_STEP & row.keys()}
            self.history.append(mean)
            self.log_dict(mean, batch_size=self.config.batch_size)
            self._row, self._seen, self._found = {}, 0.0, []
        if diverged:
            raise RuntimeError(f"the loss is {row['loss']} at step {self.global_step}: lower the learning rates")

    def parameters_by_stage(self) -> dict[str, list[nn.Parameter]]:
        """What learns, per stage; each parameter once, also where two towers share it."""
        seen: set[int] = set()
        stages: dict[str, list[nn.Parameter]] = {}
        for name in ("extractor", "retriever", "generator"):
            stages[name] = []
            for parameter in self.model.get_submodule(name).parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    stages[name].append(parameter)
        return stages

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        retriever, groups = self.model.retriever, []
        numbers = {"bm25": retriever.beta, "temperature": retriever.log_temperature}
        for name, parameters in self.parameters_by_stage().items():
            for kind, decay, chosen in (
                (name, self.config.weight_decay, [p for p in parameters if p.dim() > 1]),
                (name, 0.0, [p for p in parameters if p.dim() <= 1 and all(p is not n for n in numbers.values())]),
                *((kind, 0.0, [p for p in parameters if p is number]) for kind, number in numbers.items()),
            ):
                if chosen:
                    rate = getattr(self.config, f"lr_{kind}")
                    group = {"params": chosen, "lr": rate, "weight_decay": decay, "name": kind}
                    groups.append(group | OPTIMISER.get(kind, {}))
        if not groups:
            raise ValueError("every stage is frozen: leave at least one out of `freeze`")
        optimizer = torch.optim.AdamW(groups, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_share(step, self.steps, self.config.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norms = {}
        for name, parameters in self.parameters_by_stage().items():
            average_gradients(parameters)
            if parameters:
                norms[f"gradient_{name}"] = nn.utils.clip_grad_norm_(parameters, self.config.clip or math.inf)
        row = average(_numbers(norms))
        self.history[-1].update(row)
        self.log_dict(row, batch_size=self.config.batch_size)
        for name, norm in row.items():
            if not math.isfinite(norm):  # the loss was a number; after this step no weight would be one
                raise RuntimeError(f"{name} is {norm} at step {self.global_step}: lower the learning rates")

    def on_train_batch_start(self, batch: list[Question], step: int) -> None:
        if "extractor" in self.config.freeze:
            return
        self.model.extractor.temperature.fill_(annealed(self.global_step, self.steps, *self.config.gate_temperature))


def _numbers(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    return {name: value.item() if isinstance(value, Tensor) else value for name, value in values.items()}


def rate_share(step: int, steps: int, warmup: float) -> float:
    """Of the learning rate: up over the warm-up, then linearly down to a tenth."""
    rise = max(warmup * steps, 1)
    fall = (step - rise) / max(steps - rise, 1)
    return min((step + 1) / rise, 1 - 0.9 * max(fall, 0.0))


def annealed(step: int, steps: int, warm: float, cold: float) -> float:
    """The gates' temperature. Warm for the first half: a gate that is cold before it has moved has no slope left to
    move on."""
    return warm + (cold - warm) * min(max(2 * step / steps - 1, 0.0), 1.0)


def gate_divergence(extraction: Extraction, keep_rate: float, cut_rate: float) -> Float[Tensor, ""]:
    """What keeps the extractor from dropping everything, and its cuts countable.

    KL(mean σ(logit) ‖ rate) over the lines, for each of the two keep gates and for the cuts. Of the means, so that
    lines compete for what may stay and none is held open for itself. p(z|x) says which gaps to cut rather than others,
    but not how many (adding a constant to all cut scores changes hardly anything), so without its term the threshold
    of hard mode would mean nothing.
    """
    keep = torch.sigmoid(torch.stack([extraction.retrieve, extraction.read])).mean(1)
    return _kl(keep, keep_rate).sum() + _kl(torch.sigmoid(extraction.cut).mean(), cut_rate)


def _kl(p: Float[Tensor, "*shape"], rate: float) -> Float[Tensor, "*shape"]:
    """KL(Bernoulli(p) ‖ Bernoulli(rate))."""
    p = p.clamp(1e-6, 1 - 1e-6)
    return p * (p.log() - math.log(rate)) + (1 - p) * ((1 - p).log() - math.log(1 - rate))


def gold(rag: RAG, questions: Sequence[Question], ids: Int[Tensor, "questions k"]) -> Bool[Tensor, "questions k"]:
    """Which passages found are on the page that a question names; all of them where it names none."""
    named = [question.file is not None and question.page is not None for question in questions]
    rows = [
        [not known or (i >= 0 and on_gold_page(question, rag.passage(i))) for i in found]
        for question, known, found in zip(questions, named, ids.tolist(), strict=True)
    ]
    return torch.tensor(rows, device=rag.model.device)
