"""How near does every objective's gradient come to the exact one, over a whole corpus of which every passage is read?

    python benchmarks/gradient_audit.py [--quick] [--tails] [--costs] [--steps] [--json FILE] [--out FOLDER]
                                       [--docs docs] [--reader FOLDER]

Exact is −log Σ_z p(z|x)·p(y|x,z) over all passages. Compared is the gradient in the question's vector, through the
scores of all passages; per question its cosine to the exact one and |g − g*| / |g*|. A gold passage is `in_reach` among
the K found, `near` at ranks K < r ≤ 4K, `far` beyond; `explained` are those in reach whose p(z|x,y) is the most of all
passages', for a paragraph that a question was written about need not be what explains its answer best to a reader. The
JSON file has an objective's figures over all settings of the real corpus, and under `settings` each by itself (time and
memory of the real corpus' reader alone). `--tails` compares other guesses of the unread passages' likelihood with the
closed book, and other passages to read, on the real corpus: `2K` are twice as many, of which those with less than 2 %
of the likelihood are read without gradient, as `FitConfig.negligible` does. Three corpora:

real       SmolLM2-135M-Instruct reads every SQuAD paragraph of a few articles for every question (`reading_table.py`);
           scores are all-MiniLM-L6-v2's; τ = .05, which is the library's and the one that `RAG.calibrate` would take
           here (printed), and .1, twice as flat. Figures are of both together, and under `temperatures` of each.
tiny       a random tiny reader reads 10,000 made-up passages for 24 questions; scores are a random tiny encoder's. Gold
           is the passage with the most of p(z|x)·p(y|x,z) at τ = .05.
synthetic  10,000 random unit vectors in 64 dimensions; a question is its gold vector with noise of a random strength.
           log p(y|x,z) of an answer of three tokens is the closed book's plus N(μ, 2), μ = ±1.5 by question, plus
           2·cosine, and 8 nats more for the gold.

Draws of the stochastic ones are repeated 64 times; `variance` is E|g − ḡ|² / |g*|². `gumbel` draws half of the K (all
of them is no draw), `rloo` four. `reader` isn't here: its gradient in the question is 0 by construction. `time_ratio`
is (reading K passages, and the closed book where it is used, forward and backward, plus the objective) over the same of
rag_sequence; of objectives that teach the retriever alone reading is without gradient, as in training. `memory_ratio`
is the same of the bytes that reading holds for its backward pass. Of an objective both are
medians over K = 4, 8, 16. `--costs` measures these alone, `--steps` what whole steps of training take with K and 2K.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from audit_tables import EXPLAINED, REACH, STOCHASTIC, Cost, plot, text
from reading_table import FOLDER, Size, Table, choose, read, read_tiny
from torch import Tensor

from e2erag.artefact import write_file
from e2erag.generator import Generator
from e2erag.models import resolve
from e2erag.precision import autocast
from e2erag.rag import GENERATOR
from e2erag.retriever import log_tail
from e2erag.train import OBJECTIVES, Evidence, FitConfig, Options
from e2erag.train.calibrate import STEPS
from e2erag.train.objectives import RETRIEVER_ALONE

KS, TEMPERATURES = (4, 8, 16), (0.05, 0.1)
AHEAD = (1, 2, 3, 4)
"""How many times K passages are read, most of them without gradient."""
MINED_TOO = "2K, the last of them mined"
READER_ALONE = ("reader",)
CLOSED_BOOK = ("marginal", "rloo", "rb")
DRAWS = 64


Estimate = Callable[[Table, float, int], dict[str, "Errors"]]


class Errors(NamedTuple):
    """Per question: cosine, relative error, variance over draws (0 where nothing is drawn)."""

    cosine: Tensor
    relative: Tensor
    variance: Tensor


def synthetic(passages: int, questions: int, seed: int = 0) -> Table:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    vectors = torch.nn.functional.normalize(normal(passages, 64), dim=1)
    gold = torch.randperm(passages, generator=g)[:questions]
    strength = torch.linspace(0.05, 0.35, questions)[:, None]
    asked = torch.nn.functional.normalize(vectors[gold] + strength * normal(questions, 64), dim=1)
    cosine = asked @ vectors.T
    level = 1.5 * (torch.arange(questions) % 2 * 2 - 1)[:, None]
    gain = level + 2 * normal(questions, passages) + 2 * cosine
    gain[torch.arange(questions), gold] += 8.0
    closed = -4 - normal(questions, 3).abs()
    tokens = (closed[:, None] + gain[:, :, None] * torch.tensor([0.6, 0.3, 0.1])).clamp_max(-1e-3)
    return Table(asked, vectors, tokens, closed, torch.full((questions,), 3), gold, torch.zeros(questions, passages))


class Step:
    """What steps see that read the K best for every question, and what their losses say of the questions' vectors.

    Of `mined` passages more that they read, each is the best by BM25 with question and answer of those not read yet."""

    def __init__(self, table: Table, temperature: float, k: int, mined: int = 0) -> None:
        self.rows = table.passages.double()
        self.q = (table.questions.double() / temperature).requires_grad_()
        self.prior = (self.q @ self.rows.T).log_softmax(1)
        ids = self.prior.detach().topk(k).indices
        if mined:
            ids = torch.cat([ids, table.sparse.scatter(1, ids, -torch.inf).topk(mined).indices], 1)
        self.found = self.rows[ids]
        self.mean = self.prior.detach().exp() @ self.rows
        tokens = table.token_logp.gather(1, ids[:, :, None].expand(-1, -1, table.token_logp.shape[2])).double()
        self.evidence = Evidence(
            prior_logp=self.prior.detach().gather(1, ids).requires_grad_(),
            answer_logp=tokens.sum(2),
            closed_book_logp=table.closed_logp.sum(1).double(),
            token_logp=tokens,
            length=table.length,
            ids=ids,
            question_rows=self.q,
            passage_rows=self.found,
        )
        self.every = table.token_logp.sum(2).double()

    @cached_property
    def exact(self) -> Tensor:
        return torch.autograd.grad(-(self.prior + self.every).logsumexp(1).sum(), self.q, retain_graph=True)[0]

    def slope(self, loss: Tensor) -> Tensor:
        """Gradient in the questions' vectors: d log p(z|x)/dq = d_z − Σ_z' p(z'|x)·d_z', Z over the corpus."""
        inputs = (self.evidence.prior_logp, self.q)
        prior, direct = torch.autograd.grad(loss.sum(), inputs, allow_unused=True, materialize_grads=True)
        return direct + torch.einsum("bk,bkd->bd", prior, self.found) - prior.sum(1, keepdim=True) * self.mean


def compare(estimates: Tensor, exact: Tensor) -> Errors:
    """Draws × questions × dimensions against questions × dimensions."""
    size = exact.norm(dim=1)
    cosine = torch.cosine_similarity(estimates, exact[None], dim=2, eps=1e-30).mean(0)
    relative = ((estimates - exact).norm(dim=2) / size).mean(0)
    variance = ((estimates - estimates.mean(0)).norm(dim=2) / size).square().mean(0)
    return Errors(cosine, relative, variance)


def tails(table: Table, temperature: float, k: int) -> dict[str, Errors]:
    """`marginal` with other guesses of log p(y|x, unread) than the closed book's, and with sampled unread passages,
    also with the closed book as control variate: p(y|x,∅) times (the unread mass − what the samples make of it). And
    with other passages read: mined ones (`Step`) beside the K or in place of the last, and more of the best."""
    step = Step(table, temperature, k)
    e, every = step.evidence, table.token_logp.sum(2).double()
    read, closed = e.answer_logp.sort(1).values, e.closed_book_logp
    prior = (step.q @ step.rows.T).log_softmax(1)
    unread = prior.detach().scatter(1, e.ids, -torch.inf)
    offset = read[:, : k - 1].mean(1) - closed
    guesses = {
        "closed book": closed,
        "worst of the K": read[:, 0],
        "median of the K": read.median(1).values,
        "halfway to the worse half of the K": (closed + read[:, : k // 2].mean(1)) / 2,
        "closed book + other questions' offset": closed + (offset.sum() - offset) / (len(offset) - 1),
        "the unread passages' own mean (not to be had)": (unread + every).logsumexp(1) - unread.logsumexp(1),
    }
    found = {
        name: compare(
            step.slope(OBJECTIVES["marginal"](replace(e, closed_book_logp=guess), Options()))[None], step.exact
        )
        for name, guess in guesses.items()
    }
    noise = torch.Generator().manual_seed(0)
    found_joint = (prior.gather(1, e.ids) + e.answer_logp).logsumexp(1)
    mass = log_tail(prior.gather(1, e.ids)).exp()
    for count in (1, 2, 4):
        slopes: dict[str, list[Tensor]] = {f"{count} sampled": [], f"{count} sampled, less the closed book": []}
        for _ in range(DRAWS // 2):
            some = torch.multinomial(unread.exp(), count, replacement=True, generator=noise)
            ratio = prior.gather(1, some)  # p(z|x) over what it was drawn with: its value is the unread mass / count
            ratio = ratio - ratio.detach() + unread.logsumexp(1, keepdim=True) - math.log(count)
            share = (ratio + every.gather(1, some)).exp().sum(1)
            known = closed.exp() * (mass - ratio.exp().sum(1))  # 0 in value: it changes the slope alone
            for name, tail in zip(slopes, (share, share + known), strict=True):
                loss = -torch.logaddexp(found_joint, tail.log()).sum()
                slopes[name].append(torch.autograd.grad(loss, step.q, retain_graph=True)[0])
        found |= {name: compare(torch.stack(each), step.exact) for name, each in slopes.items()}
    others = {f"{count} mined": (k, count) for count in (1, 2, 4)}
    others |= {f"{count} mined in place of the last": (k - count, count) for count in (1, 2)}
    others |= {f"K + {count}": (k + count, 0) for count in (1, 4)}
    others |= {f"{times}K": (times * k, 0) for times in AHEAD[1:]} | {MINED_TOO: (2 * k - 1, 1)}
    for name, (best, mined) in others.items():
        other = Step(table, temperature, best, mined)
        found[name] = compare(other.slope(OBJECTIVES["marginal"](other.evidence, Options()))[None], other.exact)
    return found


def audit(table: Table, temperature: float, k: int) -> dict[str, Errors]:
    step, noise = Step(table, temperature, k), torch.Generator().manual_seed(0)
    found = {}
    for name, objective in OBJECTIVES.items():
        if name not in READER_ALONE:
            draws, options = (DRAWS if name in STOCHASTIC else 1), Options(samples=drawn(name, k), noise=noise)
            slopes = [step.slope(objective(step.evidence, options)) for _ in range(draws)]
            found[name] = compare(torch.stack(slopes), step.exact)
    return found


def drawn(name: str, k: int) -> int:
    """Passages that a stochastic objective draws where K are read."""
    return k // 2 if name == "gumbel" else 4


def likeliest_answers(table: Table, k: int) -> tuple[float, dict[float, float]]:
    """The τ at which `marginal` has answers likeliest, out of those that `RAG.calibrate` tries around .05; and by τ
    −log p(y|x), mean over the questions."""
    losses = {}
    for step in STEPS:
        temperature = TEMPERATURES[0] * 2 ** (step / 2)
        evidence = Step(table, temperature, k).evidence
        losses[temperature] = float(OBJECTIVES["marginal"](evidence, Options()).detach().mean())
    return min(losses, key=losses.__getitem__), losses


def reach(table: Table, temperature: float, k: int) -> dict[str, Tensor]:
    """Which questions' gold passage is in reach, near or far; and explained: in reach, and p(z|x,y) is most for it."""
    rank = table.rank()
    in_reach = rank < k
    return {
        "in_reach": in_reach, "near": ~in_reach & (rank < 4 * k), "far": rank >= 4 * k,
        EXPLAINED: in_reach & (table.likeliest(temperature) == table.gold),
    }  # fmt: skip


def summary(errors: list[Errors], where: list[dict[str, Tensor]], cost: Cost | None) -> dict[str, dict[str, float]]:
    """Medians and means over questions, per reach; nothing where there is no question."""
    joined = Errors(*map(torch.cat, zip(*errors, strict=True)))
    out = {}
    for name in (*REACH, EXPLAINED):
        chosen = torch.cat([each[name] for each in where])
        if chosen.any():
            cosine, relative, variance = (values[chosen] for values in joined)
            out[name] = {
                "cosine": float(np.median(cosine)), "relative_error": float(np.median(relative)),
                "cosine_mean": float(cosine.mean()), "relative_error_mean": float(relative.mean()),
                "variance": float(variance.median()), "questions": int(chosen.sum()),
                **(cost._asdict() if cost else {}),
            }  # fmt: skip
    return out


def learnt(table: Table, k: int) -> float:
    """Of K passages and the closed book, how many have at least 2 % of the likelihood: the mean over questions."""
    counts = []
    for temperature in TEMPERATURES:
        e = Step(table, temperature, k).evidence
        joint = e.prior_logp + e.answer_logp
        closed = log_tail(e.prior_logp) + e.closed_book_logp
        shares = torch.cat([joint, closed[:, None]], 1).softmax(1)
        counts.append((shares >= FitConfig().negligible).double().sum(1).mean())
    return float(torch.stack(counts).mean())


class Reading(NamedTuple):
    """What reading some passages takes, forward and backward: the least seconds of some rounds, and megabytes held."""

    seconds: float
    held: float


def readings(
    size: Size, folder: Path, reader: str | Path, k: int, rounds: int, kept: Sequence[int] = ()
) -> list[Reading]:
    """To read k passages, without and with the closed book, and without gradient; then for each of `kept` so many times
    k (`AHEAD`) and the closed book without gradient, and that many of them once more, with it."""
    texts, asked, questions, vectors = choose(size, folder)
    generator = Generator.load(resolve(reader))
    prompt, lines = generator.prompt, generator.prompt.lines(texts)
    question, answer = prompt.questions([asked[0][0]])[0], prompt.answers([asked[0][1]])[0]
    order = (vectors @ questions[0]).argsort(descending=True).tolist()
    passages = [prompt.row(lines, np.array([i]), question, answer) for i in order[: max(AHEAD) * k]]
    closed = prompt.row(None, None, question, answer)
    weights = {p.untyped_storage().data_ptr() for p in generator.parameters()}
    plans = [([], passages[:k]), ([], [*passages[:k], closed]), (passages[:k], [])]
    plans += [([*passages[: m * k], closed], passages[:n]) for m, n in zip(AHEAD, kept, strict=False)]
    best = [Reading(math.inf, 0.0)] * len(plans)
    for _ in range(rounds):
        for i, (ahead, rows) in enumerate(plans):
            held: dict[int, int] = {}

            def hold(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes() * (storage.data_ptr() not in weights)
                return tensor

            start = perf_counter()
            if ahead:
                with autocast(generator.device), torch.no_grad():
                    generator.log_likelihood(ahead)
            if rows:
                with autocast(generator.device), torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
                    loss = generator.log_likelihood(rows).sum()
                loss.backward()
            best[i] = Reading(min(best[i].seconds, perf_counter() - start), sum(held.values()) / 1e6)
            generator.zero_grad()
    return best


def costs(
    size: Size, folder: Path, reader: str | Path, ks: Sequence[int] = KS, rounds: int = 5
) -> dict[int, dict[str, Cost]]:
    """Of a question's reading and objective, per K."""
    table, every = synthetic(10_000, 24), {}
    print("reading, forward and backward: seconds and megabytes held; with the closed book; K without gradient")
    for k in ks:
        step = Step(table, TEMPERATURES[0], k)
        maths = dict.fromkeys((name for name in OBJECTIVES if name not in READER_ALONE), math.inf)
        for _ in range(10):
            for name in maths:
                start = perf_counter()
                step.slope(OBJECTIVES[name](step.evidence, Options(samples=drawn(name, k))))
                maths[name] = min(maths[name], (perf_counter() - start) / len(table.gold))
        plain, closed, alone = readings(size, folder, reader, k, rounds)
        print(
            f"K = {k:2}: {plain.seconds:.3f} s, {plain.held:.0f} MB; {closed.seconds:.3f} s, {closed.held:.0f} MB; "
            f"{alone.seconds:.3f} s without gradient"
        )
        used = {name: closed if name in CLOSED_BOOK else alone if name in RETRIEVER_ALONE else plain for name in maths}
        whole = {name: maths[name] + used[name].seconds for name in maths}
        every[k] = {name: Cost(whole[name] / whole["rag_sequence"], used[name].held / plain.held) for name in maths}
    return every


def steps(folder: Path, ks: Sequence[int] = KS, rounds: int = 2) -> dict[int, dict[str, float]]:
    """Per K, seconds of whole steps of training, forward and backward, over those of `rag_sequence` that reads its K
    with gradient: four questions over SQuAD paragraphs, retriever and generator learn (`objectives.py`'s system). The
    others read without gradient what has less than 2 % of the likelihood, as `fit` does."""
    import objectives

    size = objectives.Size()
    (documents, asked), _ = objectives.squad(size, 0, folder)
    rag = objectives.system(size, 0, folder, Path())
    rag.index(documents)
    rag.model.extractor.requires_grad_(False)
    share, every = FitConfig().negligible, {}
    for k in ks:
        plans = {
            "rag_sequence": ("rag_sequence", k, 0.0), "rag_sequence, negligible": ("rag_sequence", k, share),
            "marginal": ("marginal", k, share), "marginal, 2K": ("marginal", 2 * k, share),
        }  # fmt: skip
        seconds = dict.fromkeys(plans, 0.0)
        for at in range(rounds):
            for name, (objective, number, negligible) in plans.items():
                start = perf_counter()
                terms = rag.terms(
                    asked[4 * at : 4 * at + 4], number, "soft", negligible=negligible, tail=objective in CLOSED_BOOK
                )
                OBJECTIVES[objective](terms, Options()).mean().backward()
                rag.model.zero_grad()
                seconds[name] += perf_counter() - start
        every[k] = {name: total / seconds["rag_sequence"] for name, total in seconds.items()}
        print(f"K = {k:2}: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in every[k].items()), flush=True)
    return every


def costs_ahead(
    table: Table, size: Size, folder: Path, reader: str | Path, ks: Sequence[int] = KS, rounds: int = 5
) -> dict[int, dict[str, Cost]]:
    """Of reading more than K, per K, over reading K with gradient; unknown of what else `tails` compares."""
    unknown, every = dict.fromkeys(tails(table, TEMPERATURES[0], 4), Cost(math.nan, math.nan)), {}
    for k in ks:
        kept = [round(learnt(table, times * k)) for times in AHEAD]
        plain, _, _, *ahead = readings(size, folder, reader, k, rounds, kept)
        ratios = {
            f"{times}K": Cost(reading.seconds / plain.seconds, reading.held / plain.held)
            for times, reading in zip(AHEAD, ahead, strict=True)
        }
        for (name, cost), n in zip(ratios.items(), kept, strict=True):
            print(
                f"K = {k:2}, {name} read, {n} with gradient: time {cost.time_ratio:.3f} memory {cost.memory_ratio:.3f}"
            )
        ratios[MINED_TOO] = ratios["2K"]
        every[k] = unknown | {name: ratio for name, ratio in ratios.items() if name in unknown}
    return every


def over_k(costs: dict[int, dict[str, Cost]], name: str) -> Cost:
    """The median over K."""
    return Cost(*np.median([each[name] for each in costs.values()], axis=0).tolist())


def run(tables: dict[str, Table], costs: dict[int, dict[str, Cost]], estimate: Estimate = audit) -> dict[str, dict]:
    """Per objective: pooled over τ and K of the real corpus, and every setting by itself."""
    cells = [
        (corpus, temperature, k, reach(table, temperature, k), estimate(table, temperature, k))
        for corpus, table in tables.items()
        for temperature in TEMPERATURES
        for k in costs
    ]
    figures: dict[str, dict] = {}
    for name in next(iter(costs.values())):
        figures[name] = {}
        for among in (TEMPERATURES, *((each,) for each in TEMPERATURES)):
            real = [(errors[name], where) for corpus, of, _, where, errors in cells if corpus == "real" and of in among]
            found = summary([e for e, _ in real], [w for _, w in real], over_k(costs, name))
            if among == TEMPERATURES:
                figures[name] |= found
            else:
                figures[name].setdefault("temperatures", {})[str(*among)] = found
        figures[name]["settings"] = [
            {
                "corpus": corpus,
                "temperature": temperature,
                "k": k,
                **summary([errors[name]], [where], costs[k][name] if corpus == "real" else None),
            }
            for corpus, temperature, k, where, errors in cells
        ]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few passages and questions, K = 4: only that it runs")
    parser.add_argument("--tails", action="store_true", help="other guesses of the unread passages, nothing else")
    parser.add_argument("--costs", action="store_true", help="time and memory of every objective, nothing else")
    parser.add_argument("--steps", action="store_true", help="time of whole steps with K and 2K, nothing else")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gradient_audit"), help="where the reader's table is kept"
    )
    parser.add_argument("--docs", type=Path, help="draw gradient_audit.png there")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="SQuAD as passages and questions (jsonl.gz)")
    parser.add_argument("--reader", default=GENERATOR, help="of the real corpus: a name or a generator's folder")
    options = parser.parse_args()
    size = Size(passages=48, questions=(2, 1, 0, 1, 0)) if options.quick else Size()
    some = ((4,), 1) if options.quick else (KS, 5)
    if options.costs:
        for k, each in costs(size, options.folder, options.reader, *some).items():
            for name, cost in each.items():
                print(f"K = {k:2} {name:14} time {cost.time_ratio:.3f} memory {cost.memory_ratio:.3f}")
        return
    if options.steps:
        steps(options.folder, *some)
        return
    real = read(size, options.out, options.folder, options.reader)
    for k in some[0]:
        best, losses = likeliest_answers(real, k)
        tried = (TEMPERATURES[0] * 2**step for step in (-2, -1, 0, 1))
        others = ", ".join(f"{losses[temperature]:.2f} at {temperature:.3g}" for temperature in tried)
        print(f"K = {k:2}: answers are likeliest at τ = {best:.3g} (−log p(y|x) {losses[best]:.2f}; {others})")
    if options.tails:
        print(text(run({"real": real}, costs_ahead(real, size, options.folder, options.reader, *some), tails)))
        return
    tables = {
        "real": real,
        "tiny": read_tiny(300, 8, options.out) if options.quick else read_tiny(10_000, 24, options.out),
        "synthetic": synthetic(10_000, 24 if options.quick else 96),
    }
    figures = run(tables, costs(size, options.folder, options.reader, *some))
    print(text(figures))
    if options.json:
        write_file(options.json, json.dumps(figures, indent=2))
    if options.docs:
        plot(figures, options.docs / "gradient_audit.png")


if __name__ == "__main__":
    main()
