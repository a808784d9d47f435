"""Documents of which only some tokens are learnt: conversations in a token file with a mask.

A document of n tokens fills n - 1 places: each token but the last predicts the next one.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.batches import IGNORED, filled_ends, padded, permute, shuffled
from model.objectives.objective import Window
from model.tokens import Tokens


@dataclass(frozen=True)
class Document:
    """Token ids (n,) of a conversation, of which of them a loss is taken (n,), and its id."""

    ids: np.ndarray
    trained: np.ndarray
    name: str = ""

    def __len__(self) -> int:
        return len(self.ids) - 1

    @property
    def inputs(self) -> np.ndarray:
        """Ids (n - 1,), int64."""
        return self.ids[:-1].astype(np.int64)

    @property
    def targets(self) -> np.ndarray:
        """The following ids (n - 1,), int64; `IGNORED` where no loss is taken."""
        return np.where(self.trained[1:] != 0, self.ids[1:].astype(np.int64), IGNORED)


def documents_of(shards: Sequence[Tokens]) -> list[Document]:
    """The documents of token files with a mask, in order: views of the files."""
    documents = []
    for tokens in shards:
        assert tokens.trained is not None, "the tokens have no mask"
        start = 0
        table = tokens.documents
        for end, name in zip(table.column("end").to_pylist(), table.column("id").to_pylist(), strict=True):
            documents.append(Document(tokens.ids[start:end], tokens.trained[start:end], name))
            start = end
    return documents


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


def filled_windows(
    windows: Sequence[Sequence[Document]], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents one after another in n windows: tokens and targets (n, length), and their ends (n, M); all int64.

    What is left over of a window is a document more: tokens 0, and targets `IGNORED`.
    """
    shape = (len(windows), length)
    tokens, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    ends: list[list[int]] = [[] for _ in windows]
    for row, documents in enumerate(windows):
        start = 0
        for document in documents:
            end = start + len(document)
            tokens[row, start:end], targets[row, start:end] = document.inputs, document.targets
            ends[row].append(end)
            start = end
    return tokens, targets, filled_ends(ends, length)


_PLACES = 64
"""Numbers of places are multiples of this, so that there are few shapes to compile for."""


def trained_places(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in each window (n, T) a loss is taken, and of which ids: two of (n, N), int64.

    N is as many as a window has at most; what is left over is place 0 with the target `IGNORED`. So the states of these places
    are taken out without asking the device how many there are.
    """
    counts = (targets != IGNORED).sum(1)
    n = -(-max(1, int(counts.max(initial=0))) // _PLACES) * _PLACES
    places, wanted = np.zeros((len(targets), n), np.int64), np.full((len(targets), n), IGNORED, np.int64)
    for row, count in enumerate(counts.tolist()):
        places[row, :count] = np.flatnonzero(targets[row] != IGNORED)
        wanted[row, :count] = targets[row, places[row, :count]]
    return places, wanted


def rows_of_step(n: int, step: int, rows_per_batch: int, seed: int, first: int, count: int) -> list[int]:
    """Which of n rows are `first` to `first + count` of the batch of `step`: a pure function of (seed, step)."""
    return shuffled(step * rows_per_batch + first + np.arange(count, dtype=np.uint64), n, seed).tolist()


def first_windows(documents: Sequence[Document], context_length: int, n_tokens: int) -> list[Window]:
    """The first documents with about `n_tokens` tokens together, each in a window of its own."""
    windows: list[Window] = []
    total = 0
    for document in documents:
        if total >= n_tokens:
            break
        windows.append(padded(document.inputs, document.targets, context_length))
        total += len(document)
    return windows
