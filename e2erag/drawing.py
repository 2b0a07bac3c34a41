"""A corpus too large for the extractor to judge whole in every step: some pages drawn stand for all."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2erag.corpus import Corpus, Gates
from e2erag.extract import Extraction, GateMode
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


def of_pages_drawn(
    model: "Joint", corpus: Corpus, index: Index, lines: int, mode: GateMode, noise: torch.Generator | None
) -> tuple[Float[Tensor, ""], Extraction, Float[Tensor, " corpus"], Float[Tensor, ""]]:
    """What pages drawn say of all: the share of tokens kept, the extraction of their lines, α·log π of every passage,
    and by how much that has moved since the index was made.

    Where a passage isn't of these pages, its α·log π is the index'. Where it is, the mean move is taken out, for a
    constant cancels in p(z|x) only where all have it; and its slope counts for those too that the draw has passed by
    (Horvitz & Thompson 1952). A passage on more pages than are drawn is never among them."""
    drawn = draw(corpus, lines, noise)
    gates = model.gates(corpus, mode, noise, drawn.lines)
    stored = index.vectors[:, -1].to(gates.read)
    own = model.retriever.config.prior_weight * model.log_prior(corpus, gates, drawn.passages, drawn.lines)
    place = drawn.passages.to(stored.device)
    moved = (own.detach() - stored[place]).mean() if len(place) else stored.new_zeros(())
    weighted = own.detach() - moved + (own - own.detach()) / drawn.chance.to(own)
    return corpus.tokens_kept(gates, drawn.lines), gates.extraction, stored.index_copy(0, place, weighted), moved


def of_pages_found(
    model: "Joint", corpus: Corpus, passages: Int[Tensor, " passages"], mode: GateMode, noise: torch.Generator | None
) -> tuple[Gates, Float[Tensor, " corpus"]]:
    """Gates of the lines on these passages' pages, and log π of these passages, 0 of others. Features are normalised as
    they were for the pages drawn."""
    lines, learning = pages_of(corpus, passages), model.extractor.training
    model.extractor.eval()
    try:
        gates = model.gates(corpus, mode, noise, lines)
    finally:
        model.extractor.train(learning)
    own = model.log_prior(corpus, gates, passages, lines)
    return gates, own.new_zeros(len(corpus.passages)).index_copy(0, passages.to(own.device), own)
