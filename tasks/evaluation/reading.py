"""Reading a model on every rank: its device, and what all of them found, together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from model.machine import TrainingMachine, available_cores
from tasks.engine.ranks import Rank


@contextmanager
def reading(machine: TrainingMachine, rank: Rank) -> Iterator[str]:
    """Have the threads of this rank, and those of the others within reach; yields its device."""
    import torch
    import torch.distributed as dist

    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if rank.work else 1
    torch.set_num_threads(
        machine.threads or (max(1, available_cores() // ranks_here) if rank.work else torch.get_num_threads())
    )
    device: str = machine.device
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0') if rank.work else 0}"
    if rank.count == 1:
        yield device
        return
    # They exchange rows and figures, which are on the host.
    dist.init_process_group("gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def gathered(rank: Rank, found: list[Any]) -> list[Any]:
    """What all ranks found of their shares, in the order of the whole, on the first; nothing on others. Every rank calls it."""
    import torch.distributed as dist

    if rank.count == 1:
        return found
    parts: list[Any] | None = [None] * rank.count if rank.number == 0 else None
    dist.gather_object(found, parts)
    if parts is None:
        return []
    # `Rank.share` deals them out one by one.
    longest = max(map(len, parts))
    return list(chain.from_iterable([part[i] for part in parts if i < len(part)] for i in range(longest)))
