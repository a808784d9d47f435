"""Bits per byte of held-out documents.

Each document stands alone after end-of-text, cut into windows of the context length that
do not overlap; every token of it is predicted exactly once. The sum of the nats divided by
ln 2 and by the UTF-8 bytes of the text does not depend on the tokenizer.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from model.batches import IGNORED

_MOST_WINDOWS, _LOGITS_BYTES = 16, 512 * 2**20
"""Windows that are read together: no more than these, and no more than have so many bytes of logits."""


@dataclass(frozen=True)
class HeldOut:
    """Sums over held-out tokens."""

    nats: float = 0.0
    n_tokens: int = 0
    n_bytes: int = 0

    def __add__(self, other: "HeldOut") -> "HeldOut":
        return HeldOut(self.nats + other.nats, self.n_tokens + other.n_tokens, self.n_bytes + other.n_bytes)

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of text."""
        return self.nats / math.log(2) / self.n_bytes


Nats = Callable[..., Tensor]
"""Function from ids (B, T) and the ids that follow (B, T), `IGNORED` where none is asked for, to the nats of each, (B, T) in float32; it
gets the ends of documents (B, M) too, where the windows have some."""


def nats_of(logits: Callable[[Tensor], Tensor]) -> Nats:
    """Nats of targets by a function from ids (B, T) to logits (B, T, V), which exist as a whole."""

    def nats(tokens: Tensor, targets: Tensor) -> Tensor:
        scores = logits(tokens).float().transpose(1, 2)
        return F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="none")

    return nats


@torch.no_grad()
def measure_windows(
    nats: Nats,
    windows: Iterable[tuple[np.ndarray, ...]],
    token_bytes: np.ndarray,
    *,
    device: str = "cpu",
) -> Iterator[HeldOut]:
    """Nats, tokens and bytes of the targets of each window, in order.

    Args:
        nats: of targets; `nats_of` makes it of logits.
        windows: inputs and targets as `next_token_windows` yields them, and what else `nats` takes.
        token_bytes: bytes that each id stands for, (V,).
        device: where it computes.

    Raises:
        ValueError: if a logarithm is not finite.
    """
    remaining, windows_per_batch = iter(windows), 1
    if first := next(remaining, None):
        logits_bytes = 4 * len(first[0]) * len(token_bytes)
        windows_per_batch = max(1, min(_MOST_WINDOWS, _LOGITS_BYTES // logits_bytes))
        remaining = chain([first], remaining)
    while batch := list(islice(remaining, windows_per_batch)):
        parts = [torch.from_numpy(np.stack(part)) for part in zip(*batch, strict=True)]
        sums = nats(*(part.to(device) for part in parts)).double().sum(1).tolist()
        targets = parts[1]
        for total, row in zip(sums, targets.numpy(), strict=True):
            if not math.isfinite(total):
                raise ValueError("the likelihood of the held-out text is not finite: the model is broken")
            real = row[row != IGNORED]
            yield HeldOut(total, len(real), int(token_bytes[real].sum()))


def measure_held_out(
    nats: Nats,
    windows: Sequence[tuple[np.ndarray, ...]],
    token_bytes: np.ndarray,
    *,
    device: str = "cpu",
) -> HeldOut:
    """The sum of `measure_windows`; where there are ranks, each reads its share, and all get the same sum.

    Raises:
        ValueError: if a logarithm is not finite, or there is nothing to measure.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    # At ZeRO stage 3 ranks must compute as often as each other, so some read a window of padding.
    each = -(-len(windows) // ranks)
    share = list(windows[rank * each : (rank + 1) * each])
    first, following, *others = windows[0]
    share += [(first, np.full_like(following, IGNORED), *others)] * (each - len(share))
    measured = sum(measure_windows(nats, share, token_bytes, device=device), HeldOut())
    if ranks > 1:
        sums = torch.tensor(
            (measured.nats, measured.n_tokens, measured.n_bytes), dtype=torch.float64, device=device
        )
        dist.all_reduce(sums)
        total, n_tokens, n_bytes = sums.tolist()
        measured = HeldOut(total, round(n_tokens), round(n_bytes))
    if not measured.n_bytes:
        raise ValueError("the held-out documents have no text")
    return measured
