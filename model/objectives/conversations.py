"""Conversations: the assistant's turns are targets, packed into windows in which no conversation sees another."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from model.base_config import Config
from model.batches import IGNORED, filled_ends, permute
from model.objectives.masked_documents import (
    Document,
    documents_of,
    first_windows,
    rows_of_step,
    trained_places,
)
from model.objectives.objective import Rows, Window
from model.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from model.transformer import Transformer


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


class PackedConversations:
    """Windows of `context_length` places, filled with whole conversations."""

    def __init__(self, documents: list[Document], context_length: int) -> None:
        self.documents, self.context_length = documents, context_length
        self.windows = pack([len(document) for document in documents], context_length)
        self.n_trained = [sum(int(documents[i].trained[1:].sum()) for i in window) for window in self.windows]

    def __len__(self) -> int:
        return len(self.windows)

    def trained_targets(self, step: int, rows_per_batch: int, seed: int) -> int:
        """Targets of the whole batch of `step` of which a loss is taken."""
        return sum(
            self.n_trained[i] for i in rows_of_step(len(self), step, rows_per_batch, seed, 0, rows_per_batch)
        )

    def document_ids(self, step: int, rows_per_batch: int, seed: int) -> list[str]:
        """Conversations of the batch, window by window."""
        rows = rows_of_step(len(self), step, rows_per_batch, seed, 0, rows_per_batch)
        names = (self.documents[number].name for row in rows for number in self.windows[row])
        return list(dict.fromkeys(names))

    def batch(
        self, step: int, rows_per_batch: int, seed: int, first: int, count: int
    ) -> dict[str, np.ndarray]:
        """Rows `first` to `first + count` of the batch of `step`.

        Returns:
            tokens (count, T); ends of the conversations in each window (count, M), what is left of it being one more; places
            where a loss is taken, and the targets there, (count, N) each; all int64.
        """
        shape = (count, self.context_length)
        tokens, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        ends: list[list[int]] = [[] for _ in range(count)]
        for row, index in enumerate(rows_of_step(len(self), step, rows_per_batch, seed, first, count)):
            start = 0
            for number in self.windows[index]:
                document = self.documents[number]
                end = start + len(document)
                tokens[row, start:end], targets[row, start:end] = document.inputs, document.targets
                ends[row].append(end)
                start = end
        places, wanted = trained_places(targets)
        return {
            "tokens": tokens,
            "ends": filled_ends(ends, self.context_length),
            "places": places,
            "targets": wanted,
        }


class ConversationObjective(Config):
    """Predict what the assistant says."""

    @property
    def windows_per_row(self) -> int:
        """One."""
        return 1

    def open_rows(self, shards: Sequence[Tokens], context_length: int) -> Rows:
        """The conversations of the shards, packed."""
        return PackedConversations(documents_of(shards), context_length)

    def validation_windows(
        self, shards: Sequence[Tokens], context_length: int, n_tokens: int
    ) -> list[Window]:
        """The first conversations."""
        return first_windows(documents_of(shards), context_length, n_tokens)

    def loss(self, model: "Transformer", batch: "dict[str, Tensor]") -> "Tensor":
        """Summed cross entropy of the assistant's tokens."""
        from model.loss import summed_cross_entropy, take_places

        states = take_places(model.hidden_states(batch["tokens"], ends=batch["ends"]), batch["places"])
        return summed_cross_entropy(model, states.flatten(0, 1), batch["targets"].flatten(), has_ignored=True)
