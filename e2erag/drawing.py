"""A corpus too large for the extractor to judge whole in every step: some pages drawn stand for all."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2erag.corpus import Corpus, Gates
from e2erag.extract import GateMode
from e2erag.retriever import Index

if TYPE_CHECKING:
    from e2erag.joint import Joint


class Draw(NamedTuple):
    """Pages drawn without replacement: their lines, and the passages that lie on them and on no other.

    Attributes:
        chance: that a passage is among them.
    """

    lines: Int[Tensor, " lines"]
    passages: Int[Tensor, " passages"]
    chance: Float[Tensor, " passages"]


def draw(corpus: Corpus, lines: int, noise: torch.Generator | None = None) -> Draw:
    """So many pages that about `lines` lines stand on them, at least one page, each as likely as another."""
    pages = int(corpus.page[-1]) + 1
    count = min(max(lines * pages // len(corpus), 1), pages)
    drawn = torch.zeros(pages, dtype=torch.bool)
    drawn[torch.randperm(pages, generator=noise)[:count]] = True
    first, last = corpus.page[corpus.spans.spans[:, 1]], corpus.page[corpus.spans.spans[:, 2] - 1]
    before = torch.cat([torch.zeros(1, dtype=torch.long), drawn.cumsum(0)])
    passages = (before[last + 1] - before[first] == last - first + 1).nonzero()[:, 0]
    step = torch.arange(count)
    all_of = ((count - step).double() / (pages - step)).cumprod(0)  # so many given pages are drawn
    chance = all_of[(last - first)[passages]].float()
    return Draw(drawn[corpus.page].nonzero()[:, 0], passages, chance)


def pages_of(corpus: Corpus, passages: Int[Tensor, " passages"]) -> Int[Tensor, " lines"]:
    """Every line of the pages on which the lines of these passages stand, and those that they carry."""
    wanted = torch.zeros(int(corpus.page[-1]) + 1, dtype=torch.bool)
    for passage in passages.tolist():
        wanted[corpus.page[torch.from_numpy(corpus.lines(passage)[0])]] = True
    return wanted[corpus.page].nonzero()[:, 0]


def among(spans: Int[Tensor, "passages 3"], lines: Int[Tensor, " lines"]) -> Int[Tensor, "passages 3"]:
    """These spans (start, stop, reading) by the lines' places in `lines`, where all lines of each stand."""
    start, stop, reading = spans.T.contiguous()
    return torch.stack([torch.searchsorted(lines, start), torch.searchsorted(lines, stop - 1) + 1, reading], 1)


class Judgement(NamedTuple):
    """What a step knows of the extractor.

    Attributes:
        tokens_kept: share of the tokens that reading gates let through.
        prior: α·log π of every passage, as p(z|x) sums over them.
        of: gates of the lines that these passages need, and log π of these at least.
    """

    tokens_kept: Float[Tensor, ""]
    prior: Float[Tensor, " corpus"]
    of: Callable[[Int[Tensor, " passages"]], tuple[Gates, Float[Tensor, " corpus"]]]


def judge(
    model: "Joint", corpus: Corpus, index: Index, lines: int, mode: GateMode, noise: torch.Generator | None
) -> Judgement:
    """What the extractor says of all, from about `lines` lines where the corpus has more (0: from every line)."""
    if 0 < lines < len(corpus):
        return by_pages(model, corpus, index, lines, mode, noise)
    return by_every_line(model, corpus, mode, noise)


def by_every_line(model: "Joint", corpus: Corpus, mode: GateMode, noise: torch.Generator | None) -> Judgement:
    """All of the corpus. The prior is fresh for every passage: raising it only where passages are re-encoded would seem
    to pay."""
    gates = model.gates(corpus, mode, noise)
    log_prior = model.log_prior(corpus, gates)
    return Judgement(
        corpus.tokens_kept(gates), model.retriever.config.prior_weight * log_prior, lambda _: (gates, log_prior)
    )


def by_pages(
    model: "Joint", corpus: Corpus, index: Index, lines: int, mode: GateMode, noise: torch.Generator | None
) -> Judgement:
    """Pages drawn for what is of all lines, which the gates' `extraction` is of; pages found for what is read.

    Where a passage isn't of the pages drawn, its α·log π is the index'. Where it is, the mean move since then is taken
    out, for a constant cancels in p(z|x) only where all have it; and its slope counts for those too that the draw has
    passed by (Horvitz & Thompson 1952). A passage on more pages than are drawn is never among them. Features of pages
    found are normalised as those of the pages drawn were."""
    drawn = draw(corpus, lines, noise)
    gates = model.gates(corpus, mode, noise, drawn.lines)
    stored, weight = index.vectors[:, -1].to(gates.read), model.retriever.config.prior_weight
    own = weight * model.log_prior(corpus, gates, drawn.passages, drawn.lines)
    place = drawn.passages.to(stored.device)
    moved = (own.detach() - stored[place]).mean() if len(place) else stored.new_zeros(())
    weighted = own.detach() - moved + (own - own.detach()) / drawn.chance.to(own)
    # One number more, whatever a rank's questions find: draws are alike on all.
    seed = int(torch.randint(2**62, (), generator=noise))

    def of(passages: Int[Tensor, " passages"]) -> tuple[Gates, Float[Tensor, " corpus"]]:
        here, learning = pages_of(corpus, passages), model.extractor.training
        model.extractor.eval()
        try:
            found = model.gates(corpus, mode, torch.Generator().manual_seed(seed), here)
        finally:
            model.extractor.train(learning)
        log_prior = model.log_prior(corpus, found, passages, here) - (moved / weight if weight else 0.0)
        every = log_prior.new_zeros(len(corpus.passages)).index_copy(0, passages.to(log_prior.device), log_prior)
        return found._replace(extraction=gates.extraction), every

    return Judgement(corpus.tokens_kept(gates, drawn.lines), stored.index_copy(0, place, weighted), of)
