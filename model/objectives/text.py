"""Text: every next token is a target."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from pydantic import Field

from model.base_config import Config
from model.batches import IGNORED, Windows, filled_ends, next_token_windows
from model.objectives.objective import Rows, Window
from model.tokens import Tokens, document_ids

if TYPE_CHECKING:
    from torch import Tensor

    from model.transformer import Transformer


class _Batches(Protocol):
    """One stream of windows, or several in proportion."""

    def __len__(self) -> int: ...

    def batch(self, step: int, windows_per_batch: int, seed: int, first: int, count: int) -> np.ndarray: ...

    def pieces_of_batch(self, step: int, windows_per_batch: int, seed: int) -> Iterator[np.ndarray]: ...


class TextRows:
    """Windows of text as rows of a batch.

    Args:
        shards: what they are cut from.
        end_of_text: id that begins each document, if documents do not see each other.
    """

    def __init__(
        self,
        shards: Sequence[Tokens],
        windows: _Batches,
        context_length: int,
        end_of_text: int | None = None,
    ) -> None:
        self.shards, self.windows = shards, windows
        self.context_length, self.end_of_text = context_length, end_of_text

    def __len__(self) -> int:
        return len(self.windows)

    def trained_targets(self, step: int, rows_per_batch: int, seed: int) -> int:
        """Every token of the batch."""
        return rows_per_batch * self.context_length

    def document_ids(self, step: int, rows_per_batch: int, seed: int) -> list[str]:
        """Documents of the batch, in the order in which they are read."""
        pieces = self.windows.pieces_of_batch(step, rows_per_batch, seed)
        return list(dict.fromkeys(name for piece in pieces for name in document_ids(self.shards, piece)))

    def batch(
        self, step: int, rows_per_batch: int, seed: int, first: int, count: int
    ) -> dict[str, np.ndarray]:
        """tokens and targets, each (count, T), int64; and ends of documents (count, M), if these do not see each other."""
        ids = self.windows.batch(step, rows_per_batch, seed, first, count)
        rows = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
        if self.end_of_text is not None:
            # Each document begins with the end-of-text id.
            begins = [np.flatnonzero(window == self.end_of_text).tolist() for window in rows["tokens"]]
            rows["ends"] = filled_ends(begins, self.context_length)
        return rows


class TextObjective(Config):
    """Predict the next token of text."""

    isolate_documents: bool = Field(
        False,
        description="Whether a token attends to its own document only, and not to those before it in the window.",
    )

    def text_rows(self, shards: Sequence[Tokens], windows: _Batches, context_length: int) -> Rows:
        """Windows as rows, cut up into documents if these do not see each other."""
        end_of_text = shards[0].header.end_of_text_id if self.isolate_documents else None
        return TextRows(shards, windows, context_length, end_of_text)

    @property
    def windows_per_row(self) -> int:
        """One."""
        return 1

    def open_rows(self, shards: Sequence[Tokens], context_length: int) -> Rows:
        """The windows of the stream that the shards are."""
        return self.text_rows(
            shards, Windows([shard.ids for shard in shards], context_length), context_length
        )

    def validation_windows(
        self, shards: Sequence[Tokens], context_length: int, n_tokens: int
    ) -> list[Window]:
        """Windows spread evenly over the stream, in which documents see each other if they do so in training."""
        starts = [
            (shard.ids, start) for shard in shards for start in range(0, len(shard.ids) - 1, context_length)
        ]
        wanted = max(1, n_tokens // context_length)
        chosen = (
            starts if len(starts) <= wanted else [starts[i * len(starts) // wanted] for i in range(wanted)]
        )
        windows = [
            next(next_token_windows(ids[start : start + context_length + 1], context_length))
            for ids, start in chosen
        ]
        if not self.isolate_documents or not windows:
            return list(windows)
        end_of_text = shards[0].header.end_of_text_id
        begins = [
            np.flatnonzero((inputs == end_of_text) & (targets != IGNORED)).tolist()
            for inputs, targets in windows
        ]
        ends = filled_ends(begins, context_length)
        return [(*window, own) for window, own in zip(windows, ends, strict=True)]

    def loss(self, model: "Transformer", batch: "dict[str, Tensor]") -> "Tensor":
        """Summed cross entropy of every next token."""
        from model.loss import summed_cross_entropy

        states = model.hidden_states(batch["tokens"], ends=batch.get("ends"))
        return summed_cross_entropy(model, states.flatten(0, 1), batch["targets"].flatten())
