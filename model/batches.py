"""Which tokens are trained on at which step: a pure function of (seed, step).

The shards are read as one stream, cut into windows; each epoch cuts it at places of its own
and visits the windows in an order of its own. Nothing is remembered between steps, so the
state of a resumed run is the number of its step, and the stream is the same on any number of ranks.
"""

from collections.abc import Iterator, Sequence

import numpy as np

IGNORED = -100
"""A target of which no loss is taken; torch's own default for `ignore_index`."""

_ROUNDS = 6


def padded(inputs: np.ndarray, targets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (n,) as one window (length,), int64: what is left over is input 0 and target `IGNORED`."""
    window, wanted = np.zeros(length, np.int64), np.full(length, IGNORED, np.int64)
    window[: len(inputs)], wanted[: len(targets)] = inputs, targets
    return window, wanted


_DOCUMENTS = 8
"""Numbers of documents of a window are multiples of this, so that there are few shapes to compile for."""


def filled_ends(ends: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Where documents end in each of n windows of `length`, as one array (n, M), int64: rows are filled up with `length`."""
    most = max(map(len, ends), default=0) + 1
    filled = np.full((len(ends), -(-most // _DOCUMENTS) * _DOCUMENTS), length, np.int64)
    for row, own in enumerate(ends):
        filled[row, : len(own)] = own
    return filled


def next_token_windows(ids: np.ndarray, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets (length,), int64, in which every token of `ids` but the first is predicted once."""
    for start in range(0, len(ids) - 1, length):
        piece = ids[start : start + length + 1].astype(np.int64)
        yield padded(piece[:-1], piece[1:], length)


def _mix(x: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 (Steele et al. 2014) on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(indices: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where a pseudo-random permutation of range(n) sends `indices`.

    A balanced Feistel network over the next power of four, walked until the value falls
    into range (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        indices: uint64 array of values below n.
        n: size of the domain.
        seed, epoch: choose the permutation.

    Returns:
        uint64 array of the same shape.
    """
    half_bits = np.uint64(max(1, ((max(n, 2) - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half_bits)) - 1)
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed], np.uint64)) + np.array([epoch], np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        keys = _mix(start + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95))
        result = np.array(indices, dtype=np.uint64)
        pending = np.ones(result.shape, dtype=bool)
        while pending.any():
            value = result[pending]
            left, right = value >> half_bits, value & mask
            for key in keys:
                left, right = right, left ^ (_mix(right + key) & mask)
            result[pending] = (left << half_bits) | right
            pending = result >= np.uint64(n)
    return result


def shuffled(samples: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Which of n rows come at positions `samples` of the endless stream, uint64: each epoch visits them in an order of its own."""
    epochs, within = np.divmod(samples, np.uint64(n))
    indices = np.empty(len(samples), np.uint64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = permute(within[chosen], n, seed, int(epoch))
    return indices


def _offsets(epochs: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Where the first window of an epoch begins, int64: at 0 in the first one, and at every place once in `length` epochs."""
    places = permute(np.append(epochs % np.uint64(length), np.uint64(0)), length, seed, 0).astype(np.int64)
    return (places[:-1] - places[-1]) % length


class Windows:
    """The training windows of a list of token shards.

    In the first epoch window i is tokens i*T to (i+1)*T of the stream, both included: T inputs and the T
    targets that follow them. Every later epoch begins elsewhere, and goes on at the start of the stream after its end: where
    a text is read many times, a model that sees it cut differently learns it by heart later (`benchmarks/little_text.py`).
    """

    def __init__(self, shards: Sequence[np.ndarray], context_length: int) -> None:
        self.context_length = context_length
        self.shards = [ids for ids in shards if len(ids)]
        self.ends = np.cumsum([len(ids) for ids in self.shards], dtype=np.int64)
        self.n_tokens = int(self.ends[-1]) if self.shards else 0

    def __len__(self) -> int:
        return max(0, (self.n_tokens - 1) // self.context_length)

    def pieces(self, start: int) -> Iterator[np.ndarray]:
        """The T + 1 token ids from a place of the stream on: views of the shards."""
        position, left = start % self.n_tokens, self.context_length + 1
        while left:
            shard = int(np.searchsorted(self.ends, position, side="right"))
            first = int(self.ends[shard - 1]) if shard else 0
            piece = self.shards[shard][position - first : position - first + left]
            yield piece
            left -= len(piece)
            position = (position + len(piece)) % self.n_tokens

    def batch(self, step: int, windows_per_batch: int, seed: int, first: int, count: int) -> np.ndarray:
        """Windows `first` to `first + count` of the batch of `step`: token ids (count, T + 1), int64."""
        return self.draw(step * windows_per_batch + first + np.arange(count, dtype=np.uint64), seed)

    def draw(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """The windows that come at positions `samples` (n,), uint64, of the endless stream: token ids (n, T + 1), int64."""
        return self.read(self.starts(samples, seed))

    def read(self, starts: Sequence[int]) -> np.ndarray:
        """Places of the stream (n,) -> the token ids from there on (n, T + 1), int64."""
        out = np.empty((len(starts), self.context_length + 1), np.int64)
        for row, start in enumerate(starts):
            np.concatenate(list(self.pieces(start)), out=out[row])
        return out

    def starts(self, samples: np.ndarray, seed: int) -> list[int]:
        """Places of the stream where these windows begin."""
        windows = shuffled(samples, len(self), seed).astype(np.int64)
        offsets = _offsets(samples // np.uint64(len(self)), self.context_length, seed)
        return (windows * self.context_length + offsets).tolist()

    def pieces_of_batch(self, step: int, windows_per_batch: int, seed: int) -> Iterator[np.ndarray]:
        """What the batch of `step` is read from: views of the shards, in order."""
        samples = step * windows_per_batch + np.arange(windows_per_batch, dtype=np.uint64)
        for start in self.starts(samples, seed):
            yield from self.pieces(start)
