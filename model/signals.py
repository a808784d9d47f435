"""What ranks ask each other between steps: whether somebody wants them to stop, and whether to save."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


class Signals:
    """SIGTERM and SIGINT, to any rank, as a question that all ranks ask as often as each other, and get one answer to."""

    def __init__(self) -> None:
        self.received: list[int] = []
        # Over gloo on CPUs: to ask NCCL would make every micro-batch wait for the device.
        self.group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None

    def ask(self, wish: bool = False) -> tuple[bool, bool]:
        """Whether any rank is to stop, and whether any rank has the wish."""
        asked = torch.tensor((float(bool(self.received)), float(wish)))
        if self.group is not None:
            dist.all_reduce(asked, dist.ReduceOp.MAX, self.group)
        stop, wished = asked.numpy().tolist()
        return bool(stop), bool(wished)


@contextmanager
def signals() -> Iterator[Signals]:
    """Hear signals while the body runs."""
    heard = Signals()
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, lambda n, _: heard.received.append(n)) for number in numbers}
    try:
        yield heard
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
