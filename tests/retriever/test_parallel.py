"""Two processes with questions of their own over rows split in two: what one process with all questions finds."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, multiprocessing

from e2erag.retriever import ExactIndex, Index, ParallelIndex, Source, Store, Without

N, DIM, K, EACH = 300, 5, 9, 3


def drawn(n: int, seed: int) -> Tensor:
    """Small whole numbers, so that many scores are equal and all sums are exact."""
    return torch.randint(-2, 3, (n, DIM), generator=torch.Generator().manual_seed(seed)).float()


def filled(index: Index) -> Index:
    index.add([Source(name, name, N // 6) for name in "abcdef"], drawn(N, 0))
    index.delete(["b"])
    return index


def answers(index: Index, part: slice) -> dict[str, Tensor]:
    """Of the questions of a part: top K, log Z with and without terms left out, slopes of questions and prior."""
    g = torch.Generator().manual_seed(2)
    queries = drawn(2 * EACH, 3).double().mul(0.5)[part].requires_grad_()
    shared = torch.randint(-2, 3, (N,), generator=g).double().requires_grad_()
    each = torch.randint(-2, 3, (2 * EACH, N), generator=g).double()[part].requires_grad_()
    masks = torch.rand(2 * EACH, N, generator=g) < 0.2
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5, -1.0], dtype=torch.float64)[part]
    out = masks[part].any(0).nonzero().flatten()  # each rank leaves out rows of its own
    found = {}
    for name, prior in {"stored": None, "shared": shared, "each": each}.items():
        hits = index.search(queries, K, prior)
        found |= {f"{name} ids": hits.ids, f"{name} scores": hits.scores}
        for left, without in {"all": None, "without": Without(out, masks[part][:, out])}.items():
            log_z = index.log_z(queries, hits, without, prior)
            inputs = [queries] if prior is None else [queries, prior]
            slopes = torch.autograd.grad(weights @ log_z, inputs)
            found |= {f"{name} {left}": log_z.detach(), f"{name} {left} to queries": slopes[0]}
            if prior is not None:
                found[f"{name} {left} to prior"] = slopes[1]
    return {name: value.contiguous() for name, value in found.items()}


def process(number: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    index = filled(ParallelIndex(Store()))
    save_file(answers(index, slice(number * EACH, (number + 1) * EACH)), f"{folder}/{number}.safetensors")
    with pytest.raises(ValueError, match="give every rank batches of one size"):
        index.search(drawn(3 + number, 0), 2)
    distributed.destroy_process_group()


def test_each_rank_gets_what_one_process_finds_for_its_questions(tmp_path: Path) -> None:
    """Ids tie by tie, scores, log Z, slopes of its questions; a shared prior's slopes are one process' in the sum."""
    multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    whole = answers(filled(ExactIndex(Store())), slice(None))
    parts = [load_file(tmp_path / f"{number}.safetensors") for number in range(2)]
    for name, value in whole.items():
        shared = name.startswith("shared") and name.endswith("to prior")
        got = parts[0][name] + parts[1][name] if shared else torch.cat([part[name] for part in parts])
        assert not name.endswith(("ids", "scores")) or torch.equal(got, value), name
        torch.testing.assert_close(got, value, atol=1e-12, rtol=1e-9, msg=lambda t, n=name: f"{n}: {t}")
    scores = whole["stored scores"]
    assert (scores[:, 1:] == scores[:, :-1]).any()  # there were ties to break


def test_alone_it_is_the_exact_index() -> None:
    """One process: nothing to exchange."""
    alone, exact = (answers(filled(kind(Store())), slice(None)) for kind in (ParallelIndex, ExactIndex))
    for name, value in exact.items():
        torch.testing.assert_close(alone[name], value, atol=1e-12, rtol=1e-9)
