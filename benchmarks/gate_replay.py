"""Which settings learn to part text from boilerplate? Gradients recorded once, replayed under many settings in seconds.

    python benchmarks/gate_replay.py [--quick] [--json FILE] [--questions 384] [--seed 100] [--k 4] [--seeds 3]
                                       [--explore NATS]

A training step of `extractor_learns.py` spends its time in the reader. So the slope of −log p(y|x) in every line's
log w, with all gates open but for what is explored, is recorded per question (`--out` keeps it), and extractors are
trained on

    Σ_lines slope · w     + keep rates and token price, as `fit` has them

in place of the loss: first order, so that what turning one line down does to the slopes of others is left out. As in
`fit`, the slopes of a passage's lines may lose their mean and be clipped, question by question (`competing`). Printed
per setting, for lines of unseen articles and as means over seeds of the extractor: the area under the ROC curve of text
against boilerplate (`auc`), and the share of either that hard gates drop. And, per path, the signal that is in the
slopes: mean difference of boilerplate and text lines over its standard error over questions.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extractor_learns import FOLDER, TEXT, Size, auc, prepare, system, teach
from gate_signal import slopes

from e2erag.artefact import write_file
from e2erag.corpus import Corpus
from e2erag.extract import Extractor, ExtractorConfig
from e2erag.slopes import competing
from e2erag.train import FitConfig
from e2erag.train.module import OPTIMISER, annealed, gate_divergence, rate_share

PATHS = ("finding", "reading")
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}
SETTINGS: dict[str, dict[str, Any]] = {
    "as extractor_learns.py": {},
    "passages' slopes centred and clipped at 1": {"gate_clip": 1.0},
    "... at 4": {"gate_clip": 4.0},
    "a token price of .2": {"token_price": 0.2},
    "AdamW's usual steps": {"optimiser": ADAM, "lr": 1.2e-2},
    "gates see no layout directly": {"linear": False},
    "half the rate": {"lr": 1e-2},
    "batches of 16, twice the rate": {"batch_size": 16, "lr": 4e-2},
    "four epochs, a quarter of the rate": {"epochs": 4, "lr": 5e-3},
    "keep rate .3": {"keep_rate": 0.3},
    "width 8": {"hidden": 8},
    "width 48": {"hidden": 48},
    "no attention among lines": {"layers": 0},
}


def features(corpus: Corpus) -> dict[str, np.ndarray]:
    tokens = corpus.generator_lines.sizes[: len(corpus)]
    parts = {"layout": corpus.layout, "text": corpus.text.float(), "page": corpus.page}
    return {name: part.numpy() for name, part in parts.items()} | {"tokens": tokens}


def record(seed: int, size: Size, count: int, out: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Features and roles of the training lines with their slopes (questions × paths × lines), and of unseen lines."""
    name = f"{seed}-{size.k}-{size.tokens}-{count}-{size.gate_explore:g}"
    kept = [out / f"{split}-{name}.npz" for split in ("train", "test")]
    if not all(path.is_file() for path in kept):
        (out / "pdf").mkdir(parents=True, exist_ok=True)
        data = prepare(seed, size, FOLDER, out)
        rag = system(seed, size, teach(seed, size, data["form"], out / f"reader-{seed}-{size.form}-{size.tokens}"))
        rag.model.requires_grad_(False)
        rag.config = replace(rag.config, mode="soft")
        rag.index(data["train full"].documents)
        assert rag.corpus is not None
        unseen = Corpus(data["test full"].documents, rag.model.retriever, rag.model.generator)
        np.savez(kept[1], roles=np.asarray(data["test full"].roles), **features(unseen))
        seen = {"roles": np.asarray(data["train full"].roles)} | features(rag.corpus)
        seen["passage"] = np.zeros(len(rag.corpus), np.int64)  # candidates here have no line in common
        for number in range(len(rag.corpus.passages)):
            seen["passage"][rag.corpus.lines(number)[0]] = number
        asked = min(count, len(data["train full"].questions))
        recorded, _ = slopes(rag, data["train full"], asked, size.k, 1, size.gate_explore)
        np.savez(kept[0], slopes=recorded, **seen)
    train, test = (dict(np.load(path)) for path in kept)
    return train, test


def signal(train: dict[str, np.ndarray]) -> dict[str, float]:
    """Per path, how clearly boilerplate's slopes lie above text's, over the lines that a question has read."""
    text, found = np.isin(train["roles"], TEXT), {}
    for path, values in zip(PATHS, train["slopes"].transpose(1, 0, 2), strict=True):
        means = [(values * kind).sum(1) / np.maximum(((values != 0) * kind).sum(1), 1) for kind in (text, ~text)]
        apart = means[1] - means[0]
        found[path] = float(apart.mean() / (apart.std(ddof=1) / len(apart) ** 0.5))
    return found


def competed(train: dict[str, np.ndarray], limit: float) -> torch.Tensor:
    """Recorded slopes as training takes them: of the lines that a question has read, per passage."""
    slope = torch.from_numpy(train["slopes"].copy())
    for each in slope.flatten(0, 1) if limit else ():
        read = np.flatnonzero(each.numpy())
        passages = [read[train["passage"][read] == number] for number in np.unique(train["passage"][read])]
        leaf = torch.zeros(len(each), requires_grad=True)
        gates, _ = competing(leaf, passages, limit)
        gates.backward(each[np.concatenate(passages)]) if passages else None
        each.copy_(torch.zeros(len(each)) if leaf.grad is None else leaf.grad)
    return slope


def replay(
    train: dict[str, np.ndarray], slope: torch.Tensor, size: Size, seed: int, epochs: int, batch_size: int,
    keep_rate: float, token_price: float, hidden: int, layers: int, lr: float, optimiser: dict[str, Any], linear: bool,
) -> Extractor:  # fmt: skip
    """An extractor that has been trained on recorded slopes, with the schedules of `fit`."""
    torch.manual_seed(seed)
    extractor = Extractor(ExtractorConfig(train["text"].shape[1], hidden, layers, identity_lines=0))
    if not linear:
        extractor.gates.weight.register_hook(lambda slope: torch.cat([slope[:, :hidden], 0 * slope[:, hidden:]], 1))
    parameters = list(extractor.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr, **optimiser)
    given = inputs(train)
    tokens = torch.from_numpy(train["tokens"]).float()
    order, config, step = torch.Generator().manual_seed(seed), FitConfig(), 0
    steps = epochs * -(-len(slope) // batch_size)
    with extractor.learning():
        for _ in range(epochs):
            for batch in torch.randperm(len(slope), generator=order).split(batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = lr * rate_share(step, steps, config.warmup)
                extractor.temperature.fill_(annealed(step, steps, *config.gate_temperature))
                out = extractor(*given)
                open_ = torch.stack([extractor.log_gates(each, "soft").exp() for each in (out.retrieve, out.read)])
                loss = (slope[batch].mean(0) * open_).sum() + token_price * (tokens @ open_[1]) / tokens.sum()
                loss = loss + size.gate_weight * gate_divergence(out, keep_rate, config.cut_rate)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, config.clip)
                optimizer.step()
                step += 1
    return extractor


def inputs(lines: dict[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(lines[name]) for name in ("layout", "text", "page"))


@torch.no_grad()
def judged(extractor: Extractor, test: dict[str, np.ndarray]) -> dict[str, float]:
    """Per path: area under the ROC curve, and the shares of boilerplate and of text that are dropped."""
    text, out = np.isin(test["roles"], TEXT), extractor(*inputs(test))
    figures = {}
    for path, logits in zip(PATHS, (out.retrieve.numpy(), out.read.numpy()), strict=True):
        figures[f"{path} auc"] = auc(logits, text)
        for name, kind in (("boilerplate", ~text), ("text", text)):
            figures[f"{path} {name} dropped"] = float((logits[kind] <= 0).mean())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few questions: only that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--questions", type=int, default=384)
    parser.add_argument("--seed", type=int, default=100, help="of the articles")
    parser.add_argument("--seeds", type=int, default=3, help="how many extractors per setting")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--explore", type=float, default=Size().gate_explore, help="nats, while recording")
    parser.add_argument("--out", type=Path, default=Path("runs/gate_replay"))
    options = parser.parse_args()
    size, count = replace(Size(), k=options.k, gate_explore=options.explore), options.questions
    if options.quick:
        size, count = replace(size, articles=(2, 2), paragraphs=4, questions=(12, 12), form=4), 12
    train, test = record(options.seed, size, count, options.out / ("quick" if options.quick else "whole"))
    figures: dict[str, Any] = {"signal": signal(train)}
    print("signal: " + ", ".join(f"{path} {value:.1f}" for path, value in figures["signal"].items()))
    base = {
        "epochs": size.epochs, "batch_size": size.batch_size, "keep_rate": size.keep_rate,
        "token_price": size.token_price, "hidden": size.hidden, "layers": ExtractorConfig().layers,
        "lr": size.lr_extractor, "optimiser": OPTIMISER["extractor"], "linear": True,
    }  # fmt: skip
    slopes = {limit: competed(train, limit) for limit in {0.0, 1.0, 4.0, size.gate_clip}}
    for name, changes in SETTINGS.items():
        how = base | {"gate_clip": size.gate_clip} | changes
        slope = slopes[how.pop("gate_clip")]
        runs = [judged(replay(train, slope, size, seed, **how), test) for seed in range(options.seeds)]
        figures[name] = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        print(f"{name:42}" + "  ".join(f"{key} {value:.2f}" for key, value in figures[name].items()), flush=True)
    if options.json:
        write_file(options.json, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
