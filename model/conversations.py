"""Conversations as training batches: packed into windows in which none sees another, or in preference pairs.

A document of n tokens fills n - 1 places: each token but the last predicts the next one.
Targets that are not trained are `PADDING`.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.batches import permute, shuffled
from model.held_out import PADDING
from model.tokens import Tokens


@dataclass(frozen=True)
class Document:
    """Token ids (n,) of a conversation, and of which of them a loss is taken (n,)."""

    ids: np.ndarray
    trained: np.ndarray

    def __len__(self) -> int:
        return len(self.ids) - 1

    @property
    def inputs(self) -> np.ndarray:
        """Ids (n - 1,), int64."""
        return self.ids[:-1].astype(np.int64)

    @property
    def targets(self) -> np.ndarray:
        """The following ids (n - 1,), int64; `PADDING` where no loss is taken."""
        return np.where(self.trained[1:] != 0, self.ids[1:].astype(np.int64), PADDING)


def documents_of(shards: Sequence[Tokens]) -> list[Document]:
    """The documents of token files with a mask, in order: views of the files."""
    found = []
    for tokens in shards:
        assert tokens.trained is not None, "the tokens have no mask"
        start = 0
        for end in tokens.documents.column("end").to_pylist():
            found.append(Document(tokens.ids[start:end], tokens.trained[start:end]))
            start = end
    return found


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices whose lengths sum to at most `capacity` each: best fit, in a pseudo-random order.

    Taking the longest first would need fewer bins (Johnson 1973), and would put conversations of
    one length, so often of one kind, into one window: steps would differ more than at random.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []
    order = permute(np.arange(len(lengths), dtype=np.uint64), len(lengths), 0, 0).tolist() if lengths else []
    for index in order:
        at = bisect_left(room, (lengths[index], -1))
        if at == len(room):
            bins.append([index])
            insort(room, (capacity - lengths[index], len(bins) - 1))
        else:
            left, number = room.pop(at)
            bins[number].append(index)
            insort(room, (left - lengths[index], number))
    return bins


def _rows(n: int, step: int, rows_per_batch: int, seed: int, first: int, count: int) -> list[int]:
    """Which of n rows are `first` to `first + count` of the batch of `step`: a pure function of (seed, step)."""
    return shuffled(step * rows_per_batch + first + np.arange(count, dtype=np.uint64), n, seed).tolist()


class PackedConversations:
    """Windows of `context_length` places, filled with whole conversations."""

    def __init__(self, documents: list[Document], context_length: int) -> None:
        self.documents, self.context_length = documents, context_length
        self.windows = pack([len(document) for document in documents], context_length)
        self.n_trained = [sum(int(documents[i].trained[1:].sum()) for i in window) for window in self.windows]

    def __len__(self) -> int:
        return len(self.windows)

    def trained_tokens(self, step: int, rows_per_batch: int, seed: int) -> int:
        """Targets of the whole batch of `step` of which a loss is taken."""
        return sum(self.n_trained[i] for i in _rows(len(self), step, rows_per_batch, seed, 0, rows_per_batch))

    def batch(self, step: int, rows_per_batch: int, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
        """Rows `first` to `first + count` of the batch of `step`.

        Returns:
            tokens, targets, segments and positions, each (count, T), int64. Segment 0 is padding;
            positions begin at 0 in each segment.
        """
        shape = (count, self.context_length)
        tokens, segments, positions = (np.zeros(shape, np.int64) for _ in range(3))
        targets = np.full(shape, PADDING, np.int64)
        for row, index in enumerate(_rows(len(self), step, rows_per_batch, seed, first, count)):
            start = 0
            for segment, number in enumerate(self.windows[index], 1):
                document = self.documents[number]
                end = start + len(document)
                tokens[row, start:end], targets[row, start:end] = document.inputs, document.targets
                segments[row, start:end], positions[row, start:end] = segment, np.arange(len(document))
                start = end
        return {"tokens": tokens, "targets": targets, "segments": segments, "positions": positions}


class PreferencePairs:
    """Pairs of a chosen and a rejected conversation, each padded to the context, with the reference's log-probabilities."""

    def __init__(self, documents: list[Document], reference: np.ndarray, context_length: int) -> None:
        self.documents, self.reference, self.context_length = documents, reference, context_length

    def __len__(self) -> int:
        return len(self.documents) // 2

    def trained_tokens(self, step: int, rows_per_batch: int, seed: int) -> int:
        """Pairs of the batch: the loss is a mean over pairs."""
        return rows_per_batch

    def batch(self, step: int, rows_per_batch: int, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
        """Pairs `first` to `first + count` of the batch of `step`.

        Returns:
            tokens and targets (count, 2, T), int64, chosen before rejected, and reference (count, 2), float32.
        """
        rows = [self.pair(index) for index in _rows(len(self), step, rows_per_batch, seed, first, count)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def pair(self, index: int) -> dict[str, np.ndarray]:
        """One pair: tokens and targets (2, T), and reference (2,)."""
        tokens = np.zeros((2, self.context_length), np.int64)
        targets = np.full(tokens.shape, PADDING, np.int64)
        for side in range(2):
            document = self.documents[2 * index + side]
            tokens[side, : len(document)], targets[side, : len(document)] = document.inputs, document.targets
        return {"tokens": tokens, "targets": targets, "reference": self.reference[2 * index : 2 * index + 2].astype(np.float32)}
