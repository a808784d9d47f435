"""Several streams of windows, each with its share, and other shares from some window on: a pure function of (seed, step)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.batches import Windows

_ONE = 1 << 32


@dataclass(frozen=True)
class Phase:
    """Shares that hold from a window of the training on.

    Attributes:
        first: number of its first window, counted over the whole training.
        shares: of each stream; they need not add up to 1.
    """

    first: int
    shares: tuple[float, ...]


def _shares_of_rest(shares: Sequence[float]) -> Iterator[int]:
    """For each stream but the last its share of what the streams before it left, times 2^32."""
    left = float(sum(shares))
    for share in shares[:-1]:
        yield round(min(1.0, share / left) * _ONE) if left > 0 else 0
        # Rounding may leave less than nothing.
        left = max(0.0, left - share)


def _assign(samples: np.ndarray, shares: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Of which stream each window is, and how many windows of it come before: int64 and uint64, as long as `samples`.

    The first stream takes of any n windows share x n, give or take one; the others share what is left in the same way.
    So no stream is ever more than a window ahead of its share of what the streams before it left.
    """
    stream = np.zeros(len(samples), np.int64)
    before = samples.astype(np.uint64)
    active = np.arange(len(samples))
    for number, share in enumerate(_shares_of_rest(shares)):
        numerator = np.uint64(share)
        own = before[active]
        taken = (own * numerator) >> np.uint64(32)
        is_own = ((own + np.uint64(1)) * numerator) >> np.uint64(32) > taken
        before[active] = np.where(is_own, taken, own - taken)
        stream[active[is_own]] = number
        active = active[~is_own]
    stream[active] = len(shares) - 1
    return stream, before


class Mixture:
    """Streams of windows in fixed proportions, phase by phase."""

    def __init__(self, streams: Sequence[Windows], phases: Sequence[Phase]) -> None:
        self.streams, self.phases = streams, phases
        # Windows of each stream before each phase.
        self.before = [np.zeros(len(streams), np.uint64)]
        for phase, following in pairwise(phases):
            counts = self.counts(following.first - phase.first, phase.shares)
            self.before.append(self.before[-1] + counts)

    @staticmethod
    def counts(n_windows: int, shares: Sequence[float]) -> np.ndarray:
        """Windows of each stream among the first `n_windows` with these shares: uint64."""
        counts = np.zeros(len(shares), np.uint64)
        left = n_windows
        for number, share in enumerate(_shares_of_rest(shares)):
            counts[number] = (left * share) >> 32
            left -= int(counts[number])
        counts[-1] = left
        return counts

    def __len__(self) -> int:
        return sum(map(len, self.streams))

    def batch(self, step: int, windows_per_batch: int, seed: int, first: int, count: int) -> np.ndarray:
        """Windows `first` to `first + count` of the batch of `step`: token ids (count, T + 1), int64."""
        out = np.empty((count, self.streams[0].context_length + 1), np.int64)
        for rows, own, places in self._drawn(step * windows_per_batch + first, count):
            # Each stream is shuffled in a way of its own.
            out[rows] = self.streams[own].draw(places, seed + own)
        return out

    def pieces_of_batch(self, step: int, windows_per_batch: int, seed: int) -> Iterator[np.ndarray]:
        """What the batch of `step` is read from: views of the shards, stream by stream."""
        for _, own, places in self._drawn(step * windows_per_batch, windows_per_batch):
            for start in self.streams[own].starts(places, seed + own):
                yield from self.streams[own].pieces(start)

    def _drawn(self, first: int, count: int) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Which of `count` windows come of a stream, its number, and at which positions of it they come."""
        samples = first + np.arange(count, dtype=np.int64)
        firsts = [phase.first for phase in self.phases]
        phase_of = np.searchsorted(firsts, samples, side="right") - 1
        for number in np.unique(phase_of).tolist():
            rows = np.flatnonzero(phase_of == number)
            stream, before = _assign(samples[rows] - firsts[number], self.phases[number].shares)
            for own in np.unique(stream).tolist():
                of_stream = stream == own
                yield rows[of_stream], own, before[of_stream] + self.before[number][own]
