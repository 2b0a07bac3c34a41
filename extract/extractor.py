"""The trained extractor φ: of each line, whether it is worth finding and reading; of each gap, whether to cut.

It sees layout features and a text feature per line, and nothing of questions: what it decides holds for the
index. It is taught by the answer's loss alone, along three paths: the retrieval gates through the passage
embedding, the span prior through p(z|x), the reading gates through the generator's attention.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from e2erag.extract.candidates import KINDS, Kind, Passage, check_chunk, chunks, distinct, propose
from e2erag.extract.document import Document
from e2erag.extract.features import LAYOUT_FEATURES, layout_features
from e2erag.extract.network import PageEncoder, with_neighbours

GateMode = Literal["soft", "sample", "hard"]

CLOSED = -30.0
"""The log-gate of a line that is shut: e⁻³⁰ leaves nothing in float32, and its gradient stays finite."""
OWN = 0.3
"""How strongly features reach what is a keep gate's own, beside what is common to both: what is worth finding is mostly
worth reading, and the slope through reading is the clearer one."""


@dataclass(frozen=True)
class ExtractorConfig:
    """What the extractor proposes and how it hardens.

    Attributes:
        text_dim: width of the text feature (the retriever's word embeddings).
        hidden: width of the network; the whole module stays in the tens of thousands of parameters.
        layers: of attention among the lines of a page.
        sizes: window lengths in lines, each a granularity of the candidates.
        kinds: what is proposed beside windows; "table" gives every table in two readings of its own.
        max_tokens: of a candidate, with what it carries, as the retriever's tokenizer counts.
        max_per_page: candidates that begin on a page; where there are more, the smallest windows are thinned.
        identity_lines: first lines of a document that may travel with its passages (a quarter of it at most).
        open_logit: where gates start, and from where on they are open altogether (see `Extractor.log_gates`). Positive:
            more open than shut.
        threshold: a line is kept in hard mode when σ(logit) exceeds it. From σ(open_logit) = .82 on, an extractor that
            has learned nothing keeps no line.
        carry_threshold: likewise, a line that may travel does. Low, because a line too many costs its tokens, and one
            too few, where it names its document, all of the document's passages.
        cut_threshold: a gap is cut in hard mode when σ(cut) exceeds it. High, because the windows across a cut are
            gone then, while a milder score already ranks them down through the prior.
        cut_logit: where cut scores start; σ(−2) = .12, so that at step 0 nothing is cut.
        straight_through: in "sample" mode, use the hard gate going forward and the soft one's slope going back. Others
            stay as they are: where those of a run are "soft" (`FitConfig.gates`), soft ones are trained.
        chunk: (size, overlap) in tokens makes it the ordinary fixed chunker: nothing is learned, every gate is open,
            no line is carried, and every chunk is as likely as another. See `Extractor.fixed`.
    """

    text_dim: int = 384
    hidden: int = 48
    layers: int = 1
    sizes: tuple[int, ...] = (4, 8)
    kinds: tuple[Kind, ...] = KINDS
    max_tokens: int = 254
    max_per_page: int = 256
    identity_lines: int = 6
    open_logit: float = 1.5
    threshold: float = 0.5
    carry_threshold: float = 0.2
    cut_threshold: float = 0.9
    cut_logit: float = -2.0
    straight_through: bool = False
    chunk: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("text_dim", "hidden", "layers", "max_tokens", "max_per_page", "identity_lines"):
            least = 0 if name in ("layers", "identity_lines") else 1
            if (given := getattr(self, name)) < least:
                raise ValueError(f"{name} must be at least {least}, got {given}")
        if isinstance(self.sizes, int) or not self.sizes or min(self.sizes) < 1:
            raise ValueError(
                f"sizes are window lengths of at least one line, got {self.sizes!r}: give one or more, as in (4, 8)"
            )
        if isinstance(self.kinds, str):
            raise ValueError(f"kinds is a tuple of names, got the one name {self.kinds!r}: give ({self.kinds!r},)")
        for kind in self.kinds:
            if kind not in KINDS:
                near = get_close_matches(str(kind), KINDS, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KINDS)}"
                raise ValueError(f"there is no kind of candidates {kind!r}: {hint}")
        for name in ("threshold", "carry_threshold", "cut_threshold"):
            if not 0 <= (given := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is what σ(logit) has to exceed: give one in [0, 1], got {given}")
        if not 0 < self.open_logit < math.inf:
            raise ValueError(
                f"open_logit must be positive, so that gates start open, got {self.open_logit}: raise it, and set how "
                "many lines are kept by threshold"
            )
        if not math.isfinite(self.cut_logit):
            raise ValueError(f"cut_logit must be finite, got {self.cut_logit}: −2 cuts nothing at step 0")
        if self.chunk is not None:
            check_chunk(*self.chunk)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "ExtractorConfig":
        """The inverse of `dataclasses.asdict`, whose tuples JSON makes lists."""
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in row.items()}
        return cls(**values)


class Extraction(NamedTuple):
    """What the extractor says of each line. Gates are logits of "keep"; scores are added to log π.

    `rows` and `sentences` count only where a table is read that way."""

    retrieve: Float[Tensor, " units"]
    read: Float[Tensor, " units"]
    carry: Float[Tensor, " units"]
    cut: Float[Tensor, " units"]
    span: Float[Tensor, " units"]
    rows: Float[Tensor, " units"]
    sentences: Float[Tensor, " units"]


class Extractor(nn.Module):
    """Lines in, two keep gates, a carry gate, cut scores and a span prior out."""

    def __init__(self, config: ExtractorConfig | None = None) -> None:
        super().__init__()
        self.config = config or ExtractorConfig()
        c = self.config
        self.temperature: Float[Tensor, ""]
        self.register_buffer("temperature", torch.tensor(1.0))
        self.explore = 0.0
        self.text = nn.Linear(c.text_dim, c.hidden)
        self.layout = nn.Linear(len(LAYOUT_FEATURES), c.hidden)
        self.page = PageEncoder(c.hidden, c.layers)
        # Of figures that are the last step's (momentum 1), for every step sees all lines, or pages drawn that stand for
        # them; see `learning`. A layout feature that hardly varies here may elsewhere, hence the large ε.
        self.norm = nn.BatchNorm1d(c.hidden, momentum=1.0, affine=False)
        self.layout_norm = nn.BatchNorm1d(len(LAYOUT_FEATURES), momentum=1.0, affine=False, eps=1e-2)
        # retrieve, read, carry; and what is common to finding and reading.
        self.gates = nn.Linear(c.hidden + 3 * len(LAYOUT_FEATURES), 4)
        self.reach: Float[Tensor, " gates"]
        self.register_buffer("reach", torch.tensor([OWN, OWN, 1.0, 1.0]), persistent=False)
        self.scores = nn.Linear(c.hidden, 4)  # cut, span, rows, sentences
        # Open and neutral: every gate starts at its opening logit, every score at zero.
        for head in (self.gates, self.scores):
            nn.init.zeros_(head.weight)
        self.gates.bias.data = torch.tensor([c.open_logit] * 3 + [0.0])
        self.scores.bias.data = torch.tensor([c.cut_logit, 0.0, 0.0, 0.0])
        if c.chunk is not None:
            self.requires_grad_(False)

    @classmethod
    def fixed(cls, size: int, overlap: int = 0, text_dim: int = 384) -> "Extractor":
        """The ordinary fixed chunker with the same interface: whole lines up to `size` tokens, `overlap` in common.

        The baseline that training is held against: it runs on over pages, keeps every line and learns nothing.

        Args:
            size, overlap: in tokens, as the retriever's tokenizer counts them; alone, four characters are one.
            text_dim: width of the retriever's word embeddings, where it goes into a `RAG`.

        Raises:
            TypeError, ValueError: no whole numbers; a chunk of no token, or one that overlaps by all of itself.
        """
        return cls(ExtractorConfig(text_dim=text_dim, identity_lines=0, kinds=(), chunk=(size, overlap)))

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """`extractor(document)` is `extractor.passages(document)`; with tensors it is `forward`, as in any module."""
        first = inputs[0] if inputs else named.get("document", named.get("layout"))
        if isinstance(first, Document):
            return self.passages(*inputs, **named)
        if not isinstance(first, Tensor):
            raise TypeError(
                f"an extractor takes a document that was read, got {first!r:.80}: read the file first, "
                "extractor(e2erag.extract.read(path))"
            )
        return super().__call__(*inputs, **named)

    @contextmanager
    def learning(self, explore: float = 0.0) -> Iterator[None]:
        """In here features are normalised over the lines at hand; afterwards with the last step's figures.

        Args:
            explore: nats by which a reading gate's log w is lowered at most, for each line anew (`explored`)."""
        self.train()
        self.explore = explore
        try:
            yield
        finally:
            self.eval()
            self.explore = 0.0

    def forward(
        self,
        layout: Float[Tensor, "units features"],
        text: Float[Tensor, "units text_dim"],
        page: Int[Tensor, " units"],
    ) -> Extraction:
        """Gate logits and scores per line; a line sees the lines of its own page.

        Gates are linear in the layout of a line and of its two neighbours, and in what a small network makes of layout
        and text. The linear part is what a few hundred answers can teach; the network alone learns which lines held an
        answer (LOG.md, 2026-11-25).

        Lines have much in common, and a step that moves what they have in common moves every gate, long before it
        parts them. So the gates see each feature normalised over all lines (Ioffe & Szegedy 2015), and what is common
        is left to their bias. Out of training the figures are fixed, and no document depends on another. Scores need
        none of it: a constant in them cancels in p(z|x).

        Args:
            layout: `layout_features` of the documents, one after the other.
            text: a text feature per line, at any scale (it is normalised here).
            page: a number that changes wherever a page ends, so that no line sees across.
        """
        alone = self.training and len(layout) < 2  # one line has no spread
        layout = layout if alone else self.layout_norm(layout)
        h = F.gelu(self.text(F.layer_norm(text, text.shape[-1:])) + self.layout(layout))
        h = self.page(h, page)
        seen = torch.cat([h if alone else self.norm(h), with_neighbours(layout, page)], 1)
        gates = F.linear(seen, self.gates.weight * self.reach[:, None], self.gates.bias)
        retrieve, read, carry, common = gates.unbind(-1)
        out = Extraction(retrieve + common, read + common, carry, *self.scores(h).unbind(-1))
        # Where a page begins the text is cut already: a constant there, so no document depends on its neighbour.
        inside = F.pad(page[1:] == page[:-1], (1, 0)) if len(page) else page.bool()
        return out._replace(cut=torch.where(inside, out.cut, self.config.cut_logit))

    def all_log_gates(
        self, said: Extraction, mode: GateMode, generator: torch.Generator | None = None
    ) -> list[Float[Tensor, " units"]]:
        """log w of finding, of reading, and of carrying each line; see `log_gates`."""
        keep = [self.log_gates(logits, mode, generator) for logits in (said.retrieve, said.read)]
        return [*keep, self.log_gates(said.carry, mode, generator, self.config.carry_threshold)]

    def log_gates(
        self,
        logits: Float[Tensor, " units"],
        mode: GateMode,
        generator: torch.Generator | None = None,
        threshold: float | None = None,
    ) -> Float[Tensor, " units"]:
        """log w of each line, at most 0; `threshold` where it isn't the configured one of keep gates.

        "soft" is w = min(1, σ(logit / T) / σ(open_logit / T)): a sigmoid stretched so that a gate is exactly 1 where it
        starts, and from there on (the upper end of a hard concrete gate, Louizos et al. 2018). The slope passes as if
        there were no bound: what would be more open than open tells it from what would not. "hard" is 0 or `CLOSED`.
        "sample" is the same with binary concrete noise of temperature T on the logit (Maddison et al. 2017). T, the
        buffer `temperature`, is annealed by a run: the colder the gates, the less a threshold changes afterwards.
        """
        if self.config.chunk is not None:
            return torch.zeros_like(logits)
        if mode == "sample":
            # Drawn on the CPU, so that a seed means the same on every device.
            noise = torch.rand(logits.shape, generator=generator, dtype=logits.dtype).clamp(1e-6, 1 - 1e-6)
            logits = logits + torch.logit(noise).to(logits.device)
        threshold = self.config.threshold if threshold is None else threshold
        hard = torch.where(torch.sigmoid(logits) > threshold, 0.0, CLOSED)
        if mode == "hard":
            return hard
        opening = F.logsigmoid(self.config.open_logit / self.temperature.to(logits.dtype))
        soft = (F.logsigmoid(logits / self.temperature) - opening).clamp_min(CLOSED)
        soft = soft - soft.detach().clamp_min(0.0)
        return hard + (soft - soft.detach()) if mode == "sample" and self.config.straight_through else soft

    def taken(self, cut: Float[Tensor, " units"]) -> Bool[Tensor, " units"]:
        """The gaps that are cut in hard mode; a fixed chunker cuts where its chunks end."""
        if self.config.chunk is not None:
            return torch.zeros_like(cut, dtype=torch.bool)
        return torch.sigmoid(cut) > self.config.cut_threshold

    def explored(self, log_w: Float[Tensor, " units"], generator: torch.Generator | None) -> Float[Tensor, " units"]:
        """While learning, each line turned down by a random e⁰ … e^−explore, where there is a generator to draw from.

        Where all lines are open, the slope in one's log w tells next to nothing of what the reader would do without it:
        attention is saturated, and what is at hand twice is missed by nobody. Over lines turned down at random the
        slopes average to what a line is worth from shut to open, among any others (the integral of the slope over log
        w; compare integrated gradients, Sundararajan et al. 2017)."""
        if not self.explore or generator is None:
            return log_w
        drawn = torch.rand(log_w.shape, generator=generator, dtype=log_w.dtype)  # on the CPU, as above
        return log_w - self.explore * drawn.to(log_w.device)

    def log_prior(self, extraction: Extraction, spans: Int[Tensor, "passages 3"]) -> Float[Tensor, " passages"]:
        """log π(z) up to a constant, for spans [start, stop) of unit numbers: zero for every span at step 0.

        A span is likely where its edges are cut, its inside is not, and its lines score high on average:

            log π(z) = log c(start) + log c(stop) + mean log(1 − c(inside)) + mean(score of its lines)

        with c = σ(cut) and each log taken relative to its value at step 0 (which page edges keep). A line's score is
        its span score, and where a table is read as rows or sentences its score for that as well.

        Args:
            spans: start, stop, and the reading's number in `READINGS`.
        """
        start, stop, reading = spans.unbind(1)
        if self.config.chunk is not None:
            return extraction.cut.new_zeros(len(spans))
        neutral = extraction.cut.new_tensor(self.config.cut_logit)
        # After the last unit nothing is left to cut.
        edge = F.pad(F.logsigmoid(extraction.cut) - F.logsigmoid(neutral), (0, 1))
        whole = F.logsigmoid(-extraction.cut) - F.logsigmoid(-neutral)
        scores = torch.stack(
            [extraction.span, extraction.span + extraction.rows, extraction.span + extraction.sentences]
        )
        # Sums over the whole corpus are large where their differences are small: float64.
        whole, scores = (F.pad(x.double().cumsum(-1), (1, 0)) for x in (whole, scores))
        inside = (whole[stop] - whole[start + 1]) / (stop - start - 1).clamp_min(1)
        mean = (scores[reading, stop] - scores[reading, start]) / (stop - start)
        return edge[start] + edge[stop] + (inside + mean).to(edge.dtype)

    @torch.no_grad()
    def judge(self, document: Document, text: Float[Tensor, "units text_dim"] | None = None) -> Extraction:
        """What it says of each line of a document; `text` is as in `passages`."""
        weight, training = self.gates.weight, self.training
        page = torch.tensor([unit.page for unit in document], dtype=torch.long)
        layout = torch.from_numpy(layout_features(document)).to(weight)
        text = layout.new_zeros(len(layout), self.config.text_dim) if text is None else text.to(weight)
        self.eval()
        try:
            out: Extraction = self(layout, text, page.to(weight.device))
            return out
        finally:
            self.train(training)

    def passages(
        self,
        document: Document,
        text: Float[Tensor, "units text_dim"] | None = None,
        tokens: Int[np.ndarray, "*readings units"] | None = None,
    ) -> list[Passage]:
        """The candidate passages of a document by hard gates and cuts, as an index of it alone would hold them.

        A passage of which no line is kept for finding is gone, windows span kept lines, and none runs across a cut. But
        its text is that of all its lines, also of those that hard gates shut: gates act on what a system stores and
        reads. Which lines they drop, and which carried ones do travel, `judge` and `log_gates(…, "hard")` say.
        Untrained, every line is kept and nothing is cut.

        Args:
            text: a feature per line, of the kind that it was trained with. In a `RAG` that is the retriever's own:
                `encoder.line_features(encoder.lines(document.texts))`, `encoder` its `passage` tower. Without it lines
                are judged by layout alone: they are ranked much as with it, but few come under the threshold.
            tokens: as in `propose`.
        """
        if not len(document):
            return []
        said = self.judge(document, text)
        finding, reading = (self.log_gates(logits, "hard").cpu().numpy() == 0 for logits in (said.retrieve, said.read))
        found = self.propose(document, self.taken(said.cut).cpu().numpy(), tokens, finding)
        own = [range(passage.start, passage.stop) for passage in found]
        left = [[tuple(i for i in lines if open_[i]) for open_ in (finding, reading)] for lines in own]
        return [passage for passage, kept in zip(found, distinct(found, left), strict=True) if kept]

    def propose(
        self,
        document: Document,
        cuts: Bool[np.ndarray, " units"] | None = None,
        tokens: Int[np.ndarray, "*readings units"] | None = None,
        kept: Bool[np.ndarray, " units"] | None = None,
    ) -> list[Passage]:
        """The candidate passages of a document; with `cuts`, none runs across a cut, and with `kept`, windows count
        kept lines alone; see `propose`."""
        c = self.config
        if c.chunk is not None:
            return chunks(document, *c.chunk, None if tokens is None else np.atleast_2d(tokens)[0])
        return propose(document, c.sizes, c.identity_lines, cuts, c.kinds, tokens, c.max_tokens, c.max_per_page, kept)
