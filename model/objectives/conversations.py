"""Conversations: the assistant's turns are targets, packed into windows in which no conversation sees another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from model.base_config import Config
from model.objectives.masked_documents import (
    Document,
    documents_of,
    filled_windows,
    first_windows,
    pack,
    rows_of_step,
    trained_places,
)
from model.objectives.objective import Rows, Window
from model.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from model.transformer import Transformer


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
        rows = rows_of_step(len(self), step, rows_per_batch, seed, first, count)
        windows = [[self.documents[number] for number in self.windows[row]] for row in rows]
        tokens, targets, ends = filled_windows(windows, self.context_length)
        places, wanted = trained_places(targets)
        return {"tokens": tokens, "ends": ends, "places": places, "targets": wanted}


class ConversationObjective(Config):
    """Predict what the assistant says."""

    @property
    def windows_per_row(self) -> int:
        """One."""
        return 1

    @property
    def isolate_documents(self) -> bool:
        """Always: a window holds several conversations."""
        return True

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
