"""Rows split over two processes: what one process finds, sums and sends back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, multiprocessing

from e2erag.retriever import ExactIndex, Index, ShardedIndex, Softmax, Source, Spans, Store, StoreError, Without

N, DIM, K = 400, 5, 9


def rows(n: int = N, seed: int = 0) -> Tensor:
    """Small whole numbers, so that many scores are equal and all sums are exact."""
    return torch.randint(-2, 3, (n, DIM), generator=torch.Generator().manual_seed(seed)).float()


def fill(index: Index) -> Index:
    """Added to, updated and deleted from: dead rows on either rank."""
    index.add([Source(name, name, N // 8) for name in "abcdefgh"], rows())
    index.update([Source("b", "B", 30)], lambda sources: rows(30, 1))
    index.delete(["a", "g"])
    return index


def answers(index: Index) -> dict[str, Tensor]:
    """Top K, log Z and log p(z|x) with both gradients, each with terms left out on both ranks, in float64."""
    n, g = len(index.vectors), torch.Generator().manual_seed(2)
    queries = rows(4, 3).double().mul(0.5).requires_grad_()
    prior = torch.randint(-2, 3, (n,), generator=g).double().requires_grad_()
    each = torch.randint(-2, 3, (4, n), generator=g).double().requires_grad_()
    out = torch.randperm(n, generator=g)[:120].sort().values
    without = Without(out, torch.rand(4, len(out), generator=g) < 0.7)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    found = {}
    for name, base in {"stored": None, "fresh": prior, "per question": each}.items():
        hits = index.search(queries, K, base)
        found[f"{name} ids"], found[f"{name} scores"] = hits.ids, hits.scores
        for part, left_out in {"log Z": None, "log Z without": without}.items():
            log_z = index.log_z(queries, hits, left_out, base)
            inputs = [queries] if base is None else [queries, base]
            slopes = torch.autograd.grad(weights @ log_z, inputs)
            found |= {f"{name} {part}": log_z.detach(), f"{name} {part} to queries": slopes[0]}
            if base is not None:
                found[f"{name} {part} to prior"] = slopes[1]
    hits = index.search(queries, 4 * K, prior)
    spans = Spans(torch.tensor([(i // 40, i % 40, i % 40 + 2, 0) for i in range(n)]), 0.3)
    ids = spans.distinct(hits, K).ids
    unique = ids.unique()
    fresh = queries[:, :-1] @ index.vectors[unique, :-1].double().T + prior[unique] + 0.1
    logp = Softmax(index, queries, hits, ids, spans, unique, prior).log_prob(fresh)
    found["logp"] = logp.detach()
    found["logp to queries"], found["logp to prior"] = torch.autograd.grad(weights @ logp.sum(1), [queries, prior])
    everything = index.search(queries, n + 1)
    found["all ids"], found["all scores"] = everything.ids, everything.scores
    return {name: value.contiguous() for name, value in found.items()}


def rank(number: int, folder: str) -> None:
    """One of two processes; what only it can see is checked here, what it answers in the test."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    index = fill(ShardedIndex(Store(f"{folder}/index")))
    save_file(answers(index), f"{folder}/{number}.safetensors")
    assert len(index._rows(torch.device("cpu"))[0]) == (256, N + 30 - 256)[number]
    index.save(Path(folder, "saved"))
    loaded = ShardedIndex.load(Path(folder, "saved"))
    save_file(answers(loaded), f"{folder}/loaded-{number}.safetensors")
    with pytest.raises((KeyError, RuntimeError), match=r"'x' is not indexed|rank 0, which writes for all ranks"):
        index.delete(["x"])
    for queries, k in [(rows(3 + number), 2), (rows(3), 2 + number), (rows(3, number), 2)]:
        with pytest.raises(ValueError, match=f"rank {1 - number} asks .* gather the questions first"):
            index.search(queries, k)
    # One tile is one rank's: the other has nothing to search.
    small = ShardedIndex(Store(f"{folder}/small"))
    small.add([Source("a", "a", 3)], rows(3))
    queries = rows(2).requires_grad_()
    hits = small.search(queries, 5)
    small.log_z(queries, hits).sum().backward()
    assert hits.scores.tolist() == (rows(2) @ rows(3).T).sort(descending=True).values.tolist()
    torch.testing.assert_close(queries.grad, (rows(2) @ rows(3).T).softmax(1) @ rows(3))
    distributed.destroy_process_group()


def test_two_processes_find_sum_and_send_back_what_one_does(tmp_path: Path) -> None:
    """On both ranks: the same ids, tie by tie, the same scores, log Z, log p and gradients; saved and loaded too."""
    multiprocessing.spawn(rank, (str(tmp_path),), nprocs=2)
    one = fill(ExactIndex(Store(tmp_path / "one")))
    one.save(tmp_path / "one saved")
    for prefix, index in {"": one, "loaded-": ExactIndex.load(tmp_path / "one saved")}.items():
        expected = answers(index)
        for number in range(2):
            got = load_file(tmp_path / f"{prefix}{number}.safetensors")
            assert got.keys() == expected.keys()
            for name, value in expected.items():
                exact = name.endswith(("ids", "scores"))
                assert not exact or torch.equal(got[name], value), name
                torch.testing.assert_close(got[name], value, atol=1e-12, rtol=1e-9, msg=lambda t, n=name: f"{n}: {t}")
    scores = expected["stored scores"]
    assert (scores[:, 1:] == scores[:, :-1]).any()  # there were ties to break


def test_rows_of_many_ranks_lie_in_a_folder(tmp_path: Path) -> None:
    """In memory each rank would hold all of them; what is not there is refused as ever."""
    with pytest.raises(ValueError, match="a folder all of them reach: give the Store one"):
        ShardedIndex(Store())
    with pytest.raises(StoreError, match=r"must hold ledger.sqlite, and doesn't"):
        ShardedIndex.load(tmp_path / "nowhere")
