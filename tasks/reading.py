"""Reading a model on every rank: its device, and what all of them found, together."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import Any

from model.errors import InputError
from model.machine import TrainingMachine
from tasks.engine.ranks import Rank


@contextmanager
def reading(machine: TrainingMachine, rank: Rank, mend: str = "") -> Iterator[str]:
    """Have the threads of this rank, and those of the others within reach; yields its device.

    Args:
        mend: what makes it need less memory, such as "lower machine.evaluation_batch".
    """
    import torch
    import torch.distributed as dist

    from model.device import claim_device

    own_threads = machine.threads or torch.get_num_threads()
    device = claim_device(machine)
    if rank.work is None:
        torch.set_num_threads(own_threads)
    if rank.count == 1:
        with fitting(mend):
            yield device
        return
    # They exchange rows and figures, which are on the host. Who hangs is found by whoever watches them.
    dist.init_process_group("gloo", timeout=timedelta(weeks=52))
    try:
        with fitting(mend):
            yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def fitting(mend: str = "") -> Iterator[None]:
    """Say what to do where memory runs out in the body.

    Args:
        mend: what makes it need less.

    Raises:
        InputError: if it does.
    """
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_full and "can't allocate memory" not in str(error):
            raise
        first_line = str(error).split("\n")[0][:300]
        raise InputError(
            f"the model cannot be read in this memory ({first_line}): {f'{mend}, or ' if mend else ''}take another device"
        ) from error


def share_of(items: list[Any], rank: Rank) -> list[Any]:
    """Those of many that are a rank's to read: every n-th of n ranks."""
    return items[rank.number :: rank.count]


def in_turn(parts: list[list[Any]]) -> list[Any]:
    """What was dealt out by `share_of`, in the order that it had."""
    longest = max(map(len, parts), default=0)
    return list(chain.from_iterable([part[i] for part in parts if i < len(part)] for i in range(longest)))


def gathered(rank: Rank, found: list[Any]) -> list[Any]:
    """What all ranks found of their shares, in the order of the whole, on the first; nothing on others. Every rank calls it."""
    import torch.distributed as dist

    if rank.count == 1:
        return found
    parts: list[Any] | None = [None] * rank.count if rank.number == 0 else None
    dist.gather_object(found, parts)
    if parts is None:
        return []
    return in_turn(parts)
