"""Bits per byte of held-out documents.

Each document stands alone after end-of-text, cut into windows of the context length that
do not overlap; every token of it is predicted exactly once. The sum of the nats divided by
ln 2 and by the UTF-8 bytes of the text does not depend on the tokenizer.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = -100


def document_windows(document: np.ndarray, context_length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets (T,), int64, of a document that begins with end-of-text; the last is padded."""
    for start in range(0, len(document) - 1, context_length):
        piece = document[start : start + context_length + 1].astype(np.int64)
        inputs, targets = np.zeros(context_length, np.int64), np.full(context_length, PADDING, np.int64)
        inputs[: len(piece) - 1], targets[: len(piece) - 1] = piece[:-1], piece[1:]
        yield inputs, targets


@dataclass(frozen=True)
class HeldOut:
    """Sums over held-out tokens."""

    nats: float
    n_tokens: int
    n_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of text."""
        return self.nats / math.log(2) / self.n_bytes


@torch.no_grad()
def measure_held_out(
    logits: Callable[[Tensor], Tensor],
    windows: Iterable[tuple[np.ndarray, np.ndarray]],
    token_bytes: np.ndarray,
    *,
    windows_per_batch: int = 16,
    device: str = "cpu",
) -> HeldOut:
    """Sum the nats and the bytes of all targets.

    Args:
        logits: function from ids (B, T) to logits (B, T, V).
        windows: pairs of inputs and targets as `document_windows` yields them.
        token_bytes: bytes that each id stands for, (V,).
        windows_per_batch: windows in one call of `logits`.
        device: where `logits` computes.

    Raises:
        ValueError: if a logarithm is not finite, or there is nothing to measure.
    """
    nats, n_tokens, n_bytes = 0.0, 0, 0
    batch: list[tuple[np.ndarray, np.ndarray]] = []

    def flush() -> None:
        nonlocal nats, n_tokens, n_bytes
        inputs, targets = (torch.from_numpy(np.stack(part)) for part in zip(*batch, strict=True))
        batch.clear()
        scores = logits(inputs.to(device)).float().flatten(0, 1)
        nats += F.cross_entropy(scores, targets.flatten().to(device), ignore_index=PADDING, reduction="sum").item()
        real = targets[targets != PADDING].numpy()
        n_tokens += len(real)
        n_bytes += int(token_bytes[real].sum())

    for window in windows:
        batch.append(window)
        if len(batch) == windows_per_batch:
            flush()
    if batch:
        flush()
    if not math.isfinite(nats):
        raise ValueError("the likelihood of the held-out text is not finite: the model is broken")
    if not n_bytes:
        raise ValueError("the held-out documents have no text")
    return HeldOut(nats, n_tokens, n_bytes)
