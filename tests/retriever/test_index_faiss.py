"""Approximate search: how much it finds, and how far its estimate of log Z is from log Z."""

import os
import re
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from e2erag.retriever import ExactIndex, FaissIndex, Source, Store, StoreError, Without, approximate, choose
from e2erag.retriever.approximate import KINDS
from e2erag.retriever.sampled import SAMPLE

N, DIM = 12_000, 16


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Rows around 300 centres, as texts are."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(300, DIM, generator=g)
    rows = centres[torch.randint(300, (N,), generator=g)] + 0.5 * torch.randn(N, DIM, generator=g)
    store = Store(tmp_path_factory.mktemp("index"))
    store.add([Source("a", "a", N)], torch.nn.functional.normalize(rows))
    return store


@pytest.fixture
def queries(store: Store) -> torch.Tensor:
    return 8 * torch.nn.functional.normalize(store.rows[::400] + 0.1 * torch.randn(30, DIM))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_finds_most_of_the_ten_best(store: Store, queries: torch.Tensor, kind: str) -> None:
    """At least nine of ten; and a second index reads the structure that the first one wrote."""
    index, exact = FaissIndex(store, kind), ExactIndex(store).search(queries, 10).ids
    found = index.search(queries, 10)
    recall = (found.ids[:, :, None] == exact[:, None]).any(1).float().mean()
    assert recall >= 0.9
    again = FaissIndex(Store.open(store.folder), kind)
    again._trained = lambda *_: pytest.fail("was built again")  # type: ignore[method-assign]
    assert torch.equal(again.search(queries, 10).ids, found.ids)


@pytest.mark.parametrize("lifted", [0, 60])
def test_the_estimate_of_log_z_keeps_its_bound_and_is_unbiased(
    store: Store, queries: torch.Tensor, lifted: int
) -> None:
    """Over 200 draws the mean of Ẑ/Z is 1 within four standard errors, and its spread is within √(N/S · p_max · P):
    also where a prior lifts more rows than count exactly."""
    index, exact = FaissIndex(store, "Flat"), ExactIndex(store)
    prior, scores = None, queries @ store.rows.T
    if lifted:
        queries[:, -1], prior = 1, store.rows[:, -1].repeat(30, 1)
        prior.scatter_add_(1, torch.rand(30, N).topk(lifted).indices, 4 + torch.rand(30, lifted))
        scores = queries[:, :-1] @ store.rows[:, :-1].T + prior
    hits = index.search(queries, 10, prior)
    log_z = exact.log_z(queries, exact.search(queries, 10, prior), None, prior)
    p = (scores - log_z[:, None]).exp().scatter(1, hits.ids, 0)
    if prior is not None:
        p.scatter_(1, (prior - store.rows[:, -1]).topk(40).indices, 0)
    bound = (N / SAMPLE * p.max(1).values * p.sum(1)).sqrt()
    assert bound.max() > 1e-3
    ratio = torch.stack([(index.log_z(queries, hits, None, prior) - log_z).exp() for _ in range(200)])
    assert (ratio.std(0) < 1.2 * bound).all()
    assert ((ratio.mean(0) - 1).abs() < 4 * bound / 200**0.5).all()


def test_the_estimate_has_a_gradient_and_leaves_out_what_it_should(store: Store, queries: torch.Tensor) -> None:
    """With a fresh prior, on average over draws: what the exact index gives, within a few hundredths."""
    index, exact = FaissIndex(store, "Flat"), ExactIndex(store)
    prior = torch.randn(N).requires_grad_()
    queries = queries[:4].clone().requires_grad_()
    hits = index.search(queries, 10, prior)
    out = torch.cat([hits.ids[:, :3].flatten(), torch.arange(0, N, 7)]).unique()
    without = Without(out, torch.rand(4, len(out)) < 0.5)
    true = exact.log_z(queries, exact.search(queries, 10, prior), without, prior)
    mean = torch.stack([index.log_z(queries, hits, without, prior) for _ in range(30)]).mean(0)
    torch.testing.assert_close(mean, true, atol=0.05, rtol=0)
    for one, other in zip(
        torch.autograd.grad(mean.sum(), [queries, prior]),
        torch.autograd.grad(true.sum(), [queries, prior]),
        strict=True,
    ):
        assert torch.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.97


def test_the_kind_follows_from_the_size_and_says_so(store: Store, tmp_path: Path) -> None:
    """By rows, then by what fits into memory; and the index reports it."""
    giga = 1e9
    assert [choose(n, 385, 8 * giga)[0] for n in (10_000, 500_000, 2_000_000, 10_000_000, 50_000_000)] == [
        "Flat", "HNSW", "IVF", "SQ", "PQ",
    ]  # fmt: skip
    assert choose(500_000, 385, 8 * giga)[1].startswith(
        "500,000 rows of 385: HNSW, 906.0 MB of 8,000, expected recall@10"
    )
    for rows, room, expected in [
        (10_000, 8, "Flat.* 1.00"), (70_000, 8, "HNSW.* 0.62"), (500_000, 8, "HNSW.* 0.29"),
        (100_000, 0.17, "IVF.* 0.66"), (500_000, 0.8, "IVF.* 0.47"), (10**7, 8, "SQ.* at most 0.39"),
    ]:  # fmt: skip
        said_of = choose(rows, 385, room * giga)[1]
        assert re.search(rf": {expected} \(of made-up rows, far harder than texts\)", said_of), said_of
    for rows, measured in [(500_000, "0.997"), (2_000_000, "0.978"), (10**7, "0.978")]:
        said_of = choose(rows, 385, 8 * giga)[1]
        assert said_of.endswith(f"; {measured} of 20,411 paragraphs, which says little of more"), said_of
    assert "paragraphs" not in choose(10_000, 385)[1]
    assert "shard the corpus" in choose(10**9, 385, 8 * giga)[1]
    store.save(tmp_path / "index")
    said: list[str] = []
    FaissIndex(Store.open(tmp_path / "index"), report=said.append).search(torch.ones(1, DIM), 1)
    assert said == [choose(N, DIM)[1]]


@pytest.mark.parametrize("kind", ["Flat", "HNSW"])
def test_a_structure_in_one_piece_is_not_moved_while_it_is_built(
    store: Store, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for all rows is there before the first of them: growing would hold them twice."""
    store.save(tmp_path)
    index, places, padded = FaissIndex(Store.open(tmp_path), kind), [], approximate._padded

    def seen(rows: np.ndarray, width: int) -> np.ndarray:
        if index.faiss.ntotal:
            places.append(int(faiss.downcast_index(getattr(index.faiss, "storage", index.faiss)).codes.data()))
        return padded(rows, width)

    monkeypatch.setattr(approximate, "_ADDED", 1000)
    monkeypatch.setattr(approximate, "_padded", seen)
    assert index.search(torch.ones(1, DIM), 1).ids.shape == (1, 1)
    assert len(places) >= N // 1000 - 1
    assert len(set(places)) == 1


def test_a_structure_needs_a_folder_a_known_kind_and_its_hash(store: Store, tmp_path: Path) -> None:
    """Each with the way out."""
    with pytest.raises(ValueError, match="give the Store a folder, or use ExactIndex"):
        FaissIndex(Store())
    with pytest.raises(ValueError, match="kind must be one of Flat, HNSW, IVF, SQ, PQ, got 'LSH'"):
        FaissIndex(store, "LSH")
    FaissIndex(store, "Flat").save(tmp_path / "index")
    path = tmp_path / "index" / "Flat-1.faiss"
    content = path.read_bytes()
    path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(StoreError, match=r"Flat-1.faiss has changed since it was written: delete it"):
        FaissIndex.load(tmp_path / "index").search(torch.ones(1, DIM), 1)
    path.unlink()
    again = FaissIndex(Store.open(tmp_path / "index"), "Flat")
    assert torch.equal(again.search(store.rows[:1], 5).ids, ExactIndex(store).search(store.rows[:1], 5).ids)
    assert path.exists()
    assert again.store.structure("Flat") == ("Flat", path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_structure_is_refused_and_is_built_again_once_deleted(kind: str, tmp_path: Path) -> None:
    """A byte changed at its head, in its middle and at its end, cut short, emptied, something else: its hash tells."""
    store = Store(tmp_path)
    store.add([Source("a", "a", 500)], torch.randn(500, DIM))
    queries = torch.randn(5, DIM)
    hits = FaissIndex(store, kind).search(queries, 5)
    path = tmp_path / f"{kind}-1.faiss"
    content = path.read_bytes()
    half = len(content) // 2
    changed = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in (0, half, len(content) - 1)]
    for damaged in (*changed, content[:half], content[:-1], b"", b"not a structure"):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=rf"{kind}-1.faiss has changed since it was written: delete it, and it is"):
            FaissIndex(Store.open(tmp_path), kind).search(queries, 5)
    path.unlink()
    again = FaissIndex(Store.open(tmp_path), kind).search(queries, 5)
    assert torch.equal(again.ids, hits.ids)
    torch.testing.assert_close(again.scores, hits.scores)
    assert path.read_bytes() == content


def test_a_structures_name_is_on_the_disk_before_it_is_stated(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is flushed after the rename: a power cut can't leave a ledger that names what isn't there."""
    store.save(tmp_path)
    index, flush, seen = FaissIndex(Store.open(tmp_path), "Flat"), os.fsync, []

    def flushed(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            seen.append(((tmp_path / "Flat-1.faiss").exists(), index.store.has_structure("Flat")))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", flushed)
    index.search(torch.ones(1, DIM), 1)
    assert seen == [(True, False)]
    assert index.store.has_structure("Flat")
