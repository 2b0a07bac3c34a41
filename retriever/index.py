"""What an index of passages is: top K and log Z over the whole corpus, kept by document.

Each stored row is [d(z) ; α·log π(z)] and each query is [q(x)/τ ; 1], so that an inner product is the whole
score s_z and the prior takes part in the search. Rows are numbered in the order in which they were added; a deleted
row's number is not given again until the index is saved or built anew.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Hits(NamedTuple):
    """Per question, the K passages found: their rows in the index and their scores, best first, equal scores by row.

    Where fewer than K can be found, the rest is −1 with a score of −∞. `sums` is log Σ exp(s_z) over each run of 64
    rows where the search saw them all, and None where it didn't."""

    ids: Int[Tensor, "questions k"]
    scores: Float[Tensor, "questions k"]
    sums: Float[Tensor, "questions tiles"] | None = None


class Without(NamedTuple):
    """Terms left out of Z: these rows (ascending, each once), for the questions that the mask names."""

    rows: Int[Tensor, " out"]
    mask: Bool[Tensor, "questions out"]


class Source(NamedTuple):
    """A document as an index knows it: its name, a hash of what its rows are made from, and how many there are."""

    name: str
    content: str
    passages: int


def fingerprint_of(sources: Iterable[Source]) -> str:
    """A hash of these documents, their contents and how many rows each has."""
    digest = blake2b(digest_size=16)
    for source in sources:
        digest.update(repr(tuple(source)).encode())
    return digest.hexdigest()


Queries: TypeAlias = Float[Tensor, "questions dim"]
Prior: TypeAlias = Float[Tensor, "*each passages"]
"""What is added to the inner product of vectors in place of the stored α·log π: per passage, or per question too."""
Rows: TypeAlias = Float[Tensor, "passages dim"]
Encode: TypeAlias = Callable[[Sequence[Source]], Tensor]
"""The rows of these documents, one below the other."""


@runtime_checkable
class Index(Protocol):
    """Passages by document, searched by inner product. `prior`, where it is given, is α·log π(z) of every row, and
    counts in place of the rows' last component, which may be stale."""

    exact: bool
    """Whether log Z is the sum over every row, or an estimate of it."""

    @property
    def vectors(self) -> Rows:
        """The stored rows, dead ones too: a view, in the dtype they are stored in."""

    @property
    def manifest(self) -> Mapping[str, object]:
        """What the rows were made with, as `load` compares it; and of which documents (`corpus`), dtype and count."""

    def __len__(self) -> int:
        """Passages that a search can find."""

    def sources(self) -> Iterator[tuple[Source, slice]]:
        """Documents in the order of their rows, and where these stand."""

    def search(self, queries: Queries, k: int, prior: Prior | None = None) -> Hits:
        """The k best passages per query, without gradient; k may exceed the corpus."""

    def log_z(
        self,
        queries: Queries,
        hits: Hits,
        without: Without | None = None,
        prior: Prior | None = None,
    ) -> Float[Tensor, " questions"]:
        """log Σ exp(s_z), with gradient into queries and prior. `hits` come from a search with the same ones."""

    def add(self, sources: Sequence[Source], rows: Tensor | Encode) -> int:
        """Store new documents; what is stored with the same content already costs nothing, not even its encoding.

        Returns the passages written. A name stored with other content is refused."""

    def update(self, sources: Sequence[Source], rows: Tensor | Encode) -> int:
        """`add` that replaces what is stored under a name with other content."""

    def delete(self, names: Sequence[str]) -> int:
        """Forget documents; returns the passages that are gone."""

    def save(self, folder: Path) -> None:
        """Write what is alive, in order; a reader of that folder sees the old index or the new one."""

    @classmethod
    def load(cls, folder: Path, expect: Mapping[str, object] | None = None, verify: bool = True) -> "Index":
        """What was saved or built there. A changed file (`verify`) or another manifest than expected is refused."""


def check_queries(index: Index, queries: Queries, k: int, prior: Prior | None = None) -> None:
    """Refuse what no search can answer."""
    if not len(index):
        raise ValueError("an index needs at least one passage, got none: were any documents read?")
    rows, dim = index.vectors.shape
    if queries.ndim != 2:
        raise ValueError(
            f"queries must be questions × {dim} components, got {tuple(queries.shape)}: one alone is queries[None]"
        )
    if queries.shape[1] != dim:
        raise ValueError(f"queries must have the rows' {dim} components, got {queries.shape[1]}: another encoder?")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not math.isfinite(queries.detach().sum()) and not torch.isfinite(queries).all():  # a sum is quick
        raise ValueError("queries must be finite, got NaN or infinity: did training diverge?")
    if prior is None:
        return
    if prior.shape not in ((rows,), (len(queries), rows)):
        raise ValueError(
            f"a prior must be of the index' {rows} rows, dead ones too, or {len(queries)} questions × {rows}, got "
            f"{tuple(prior.shape)}: is it of this corpus?"
        )
    # −∞ says that a passage can't be; a sum of it stays below ∞.
    if not prior.detach().sum() < math.inf and not (prior < math.inf).all():
        raise ValueError("a prior must be finite or −∞, got NaN or ∞: did training diverge?")


def check_sources(sources: Sequence[Source], before: Set[str] = frozenset()) -> list[str]:
    """The documents' names, each once, none of them one that came before, and all of it such as can be stored."""
    names = [source.name for source in sources]
    for name, content, passages in sources:
        for what, text in (("name", name), ("content", content)):
            try:
                text.encode()
            except (AttributeError, UnicodeEncodeError):
                raise ValueError(
                    f"a document's {what} must be text that UTF-8 can write, got {text!r}: give it another"
                ) from None
        if passages < 0:
            raise ValueError(f"a document has no passage or more, and {name!r} came with {passages}: count its rows")
    if len(set(names)) < len(names) or not before.isdisjoint(names):
        twice = next(name for name in names if name in before or names.count(name) > 1)
        raise ValueError(f"each document comes once, and {twice!r} came twice: give every one a name of its own")
    return names


def check_rows(rows: Tensor, sources: Sequence[Source]) -> None:
    """Rows are as many as the documents say."""
    expected = sum(source.passages for source in sources)
    if rows.ndim != 2 or len(rows) != expected:
        raise ValueError(
            f"{len(sources)} documents of {expected} passages need as many rows, got {tuple(rows.shape)}: does "
            "encode() give one row per passage, document by document?"
        )
