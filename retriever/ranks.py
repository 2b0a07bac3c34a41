"""The processes of torch.distributed, of which there is one where no group was made."""

import atexit
import os
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, distributed, nn

ELSEWHERE = "rank 0, which writes for all ranks, could not change the index: its own error says why"
_DONE, _FAILED = -1, -2


def join() -> None:
    """Meet the other processes that torchrun has started, once; without torchrun do nothing.

    From then on they work together: every one has to make the same calls in the same order."""
    if not distributed.is_available() or distributed.is_initialized() or not distributed.is_torchelastic_launched():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(lambda: distributed.is_initialized() and distributed.destroy_process_group())


def ranks() -> int:
    """How many there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return distributed.get_rank() if ranks() > 1 else 0


def gathered(own: Tensor) -> list[Tensor]:
    """Every rank's, in the order of ranks, without gradient."""
    if ranks() == 1:
        return [own]
    every = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(ranks())]
    distributed.all_gather(every, own.contiguous())
    return every


def device() -> str:
    """Where what is exchanged has to lie, if it is on no device yet."""
    return "cuda" if ranks() > 1 and distributed.get_backend() == "nccl" else "cpu"


def check_alike(what: str, rule: str) -> None:
    """Refuse, on every rank, what is not the same on all of them: one small exchange instead of a mixture."""
    own = torch.frombuffer(bytearray(sha256(what.encode()).digest()), dtype=torch.uint8).to(device())
    if any(not torch.equal(other, own) for other in gathered(own)):
        raise ValueError(f"every process must {rule}, and rank {rank()} has something else than another")


def led(work: Callable[[Callable[[Tensor], Tensor]], None], share: Callable[[Tensor], Tensor]) -> None:
    """What only rank 0 does, with the others' help.

    Args:
        work: done by rank 0. It calls what it is given with whole numbers, as often as it likes.
        share: what every rank does with these numbers, all at the same time.

    Raises:
        RuntimeError: on the other ranks, where `work` failed; where `share` did, they wait for each other in vain, as
            in any exchange, until the group's time is up."""
    if rank():
        while (count := int(of_rank_0(torch.tensor([0])))) >= 0:
            share(of_rank_0(torch.empty(count, dtype=torch.long)))
        if count == _FAILED:
            raise RuntimeError(ELSEWHERE)
        return

    def asked(numbers: Tensor) -> Tensor:
        of_rank_0(torch.tensor([len(numbers)]))
        return share(of_rank_0(numbers))

    end = _FAILED
    try:
        work(asked)
        end = _DONE
    finally:
        of_rank_0(torch.tensor([end]))


def of_rank_0(own: Tensor) -> Tensor:
    """Rank 0's figures on every rank, so that all decide alike."""
    if ranks() == 1:
        return own
    same = own.to(device())
    distributed.broadcast(same, 0)
    return same.to(own.device)


def of_all(own: Tensor) -> Tensor:
    """Every rank's rows (as many on each), in the order of ranks. Backward: what every rank's loss says of this rank's
    rows, summed."""
    return _Gather.apply(own) if ranks() > 1 else own


def of_this(every: Tensor) -> Tensor:
    """This rank's share of rows that all ranks hold alike. Backward: every rank's share of the slopes, put together."""
    return _Take.apply(every) if ranks() > 1 else every


class _Gather(torch.autograd.Function):
    """(torch's own differentiable all_gather is deprecated, and what replaces it isn't in the oldest torch we take.)"""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return torch.cat(gathered(rows))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        whole = slope.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(whole)
        return whole.chunk(ranks())[rank()]


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, every: Tensor) -> Tensor:
        return every.chunk(ranks())[rank()].clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return torch.cat(gathered(slope))


@torch.no_grad()
def share_weights(module: nn.Module) -> None:
    """Rank 0's parameters and buffers on every rank."""
    if ranks() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            distributed.broadcast(tensor.data, 0)


def average(values: dict[str, float]) -> dict[str, float]:
    """Means over the ranks, which must have the same names in the same order."""
    if ranks() == 1:
        return values
    own = torch.tensor(list(values.values()), dtype=torch.float64, device=device())
    distributed.all_reduce(own)
    return dict(zip(values, (own / ranks()).tolist(), strict=True))


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Each gradient becomes its mean over the ranks; one that no rank has stays None, of one that some have the others'
    are 0. Takes as much memory again as the gradients of one dtype."""
    if ranks() == 1:
        return
    learning = list(parameters)
    if not learning:
        return
    there = torch.tensor([p.grad is not None for p in learning], dtype=torch.int32, device=learning[0].device)
    distributed.all_reduce(there)
    wanted = [p for p, count in zip(learning, there.tolist(), strict=True) if count]
    for dtype in dict.fromkeys(p.dtype for p in wanted):
        group = [p for p in wanted if p.dtype == dtype]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in group])
        distributed.all_reduce(flat)
        parts = flat.div_(ranks()).split([p.numel() for p in group])
        for p, part in zip(group, parts, strict=True):
            p.grad = part.view_as(p)
