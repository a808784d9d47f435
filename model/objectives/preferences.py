"""Preferences: of two answers the chosen one becomes likelier than the rejected one, beside a reference (DPO)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from model.base_config import Config
from model.batches import padded
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


_LENGTHS = 64
"""Padded lengths are multiples of this, so that there are few shapes to compile for."""


class PreferencePairs:
    """Pairs of a chosen and a rejected conversation, with the reference's log-probabilities.

    Both sides of all pairs that are computed together are padded to the longest of them, and not to the context.
    """

    def __init__(self, documents: list[Document], reference: np.ndarray, context_length: int) -> None:
        self.documents, self.reference, self.context_length = documents, reference, context_length

    def __len__(self) -> int:
        return len(self.documents) // 2

    def trained_targets(self, step: int, rows_per_batch: int, seed: int) -> int:
        """Pairs of the batch: the loss is a mean over pairs."""
        return rows_per_batch

    def document_ids(self, step: int, rows_per_batch: int, seed: int) -> list[str]:
        """Both sides of each pair of the batch."""
        rows = rows_of_step(len(self), step, rows_per_batch, seed, 0, rows_per_batch)
        return list(dict.fromkeys(self.documents[2 * row + side].name for row in rows for side in (0, 1)))

    def batch(
        self, step: int, rows_per_batch: int, seed: int, first: int, count: int
    ) -> dict[str, np.ndarray]:
        """Pairs `first` to `first + count` of the batch of `step`.

        Returns:
            tokens (count, 2, T), places and targets (count, 2, N), int64, chosen before rejected, and reference (count, 2),
            float32.
        """
        return self.rows(rows_of_step(len(self), step, rows_per_batch, seed, first, count))

    def rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Some pairs: tokens (n, 2, T), places and targets (n, 2, N), and reference (n, 2).

        T is the shortest multiple of 64 that holds them; of places see `trained_places`.
        """
        sides = [side for index in indices for side in (2 * index, 2 * index + 1)]
        documents = [self.documents[side] for side in sides]
        longest = max(map(len, documents))
        length = min(self.context_length, -(-longest // _LENGTHS) * _LENGTHS)
        windows = [padded(document.inputs, document.targets, length) for document in documents]
        tokens, targets = (np.stack(part) for part in zip(*windows, strict=True))
        places, wanted = trained_places(targets)
        values = {"tokens": tokens, "places": places, "targets": wanted}
        values["reference"] = self.reference[sides].astype(np.float32)
        return {name: value.reshape(len(indices), 2, *value.shape[1:]) for name, value in values.items()}

    def alike_in_length(self, n_tokens: int) -> Iterator[list[int]]:
        """All pairs in groups of about one length, each of at most about `n_tokens` tokens once padded, or of one pair."""
        longest = [max(len(self.documents[2 * i]), len(self.documents[2 * i + 1])) for i in range(len(self))]
        group: list[int] = []
        for index in sorted(range(len(self)), key=lambda i: (longest[i], i)):
            if group and 2 * (len(group) + 1) * longest[index] > n_tokens:
                yield group
                group = []
            group.append(index)
        if group:
            yield group


class PreferenceObjective(Config):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290)."""

    beta: float = Field(gt=0, description="How strongly the model is held to the reference.")
    reference: Path = Field(
        description="File of log-probabilities of each document under the reference, float32 (n,), in nats."
    )

    @property
    def windows_per_row(self) -> int:
        """Two: chosen and rejected."""
        return 2

    def open_rows(self, shards: Sequence[Tokens], context_length: int) -> Rows:
        """The pairs of the shards."""
        return PreferencePairs(documents_of(shards), np.load(self.reference), context_length)

    def validation_windows(
        self, shards: Sequence[Tokens], context_length: int, n_tokens: int
    ) -> list[Window]:
        """The chosen sides of the first pairs."""
        return first_windows(documents_of(shards)[::2], context_length, n_tokens)

    def loss(self, model: "Transformer", batch: "dict[str, Tensor]") -> "Tensor":
        """Summed loss of the pairs: equation 7 of the paper."""
        import torch.nn.functional as F

        from model.loss import log_probabilities

        sides = (batch[name].flatten(0, 1) for name in ("tokens", "targets", "places"))
        nats = log_probabilities(model, *sides).view(-1, 2)
        chosen, rejected = (nats - batch["reference"]).unbind(1)
        return -F.logsigmoid(self.beta * (chosen - rejected)).sum()
