"""What an index of passages is: top K and log Z over the whole corpus, kept by document.

Each stored row is [d(z) ; α·log π(z)] and each query is [q(x)/τ ; 1], so that an inner product is the whole
score s_z and the prior takes part in the search. Rows are numbered in the order in which they were added; a deleted
row's number is not given again until the index is saved or built anew.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


def check_queries(index: Index, queries: Queries, k: int) -> None:
    """Refuse what no search can answer."""
    if not len(index):
        raise ValueError("an index needs at least one passage, got none: were any documents read?")
    dim = index.vectors.shape[1]
    if queries.shape[1] != dim:
        raise ValueError(f"queries must have the rows' {dim} components, got {queries.shape[1]}: another encoder?")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not math.isfinite(queries.detach().sum()) and not torch.isfinite(queries).all():  # a sum is quick
        raise ValueError("queries must be finite, got NaN or infinity: did training diverge?")
