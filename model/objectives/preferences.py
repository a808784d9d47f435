"""Preferences: of two answers the chosen one becomes likelier than the rejected one, beside a reference (DPO)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from model.base_config import Config
from model.batches import IGNORED
from model.objectives.masked_documents import (
    Document,
    documents_of,
    filled_windows,
    first_windows,
    pack,
    rows_of_step,
)
from model.objectives.objective import Rows, Window
from model.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from model.transformer import Transformer


_LENGTHS = 64
"""Lengths are multiples of this, so that there are few shapes."""


def _rounded(n: int) -> int:
    return max(1, -(-n // _LENGTHS)) * _LENGTHS


class PreferencePairs:
    """Pairs of a chosen and a rejected conversation, with the reference's log-probabilities.

    Both sides of all pairs that are computed together are packed into as few windows as hold them, in which no side sees
    another: a short one is not padded to a long one.
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
            As `rows`.
        """
        return self.rows(rows_of_step(len(self), step, rows_per_batch, seed, first, count))

    def rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Some pairs, packed.

        Returns:
            tokens (W, T) of W windows, T the shortest multiple of 64 that holds the fullest; positions of the tokens in their
            sides (W, T), since in bfloat16 RoPE rounds elsewhere at other places; ends of the sides in each window (W, M);
            places (N,) where they are trained, side after side, counted through all windows, and the targets there (N,);
            numbers of these places for each side (2n, P), chosen before rejected, N where it has fewer than P; all int64.
            reference (2n,), float32. N and P are multiples of 64: what is left of N is place 0 with the target `IGNORED`.
        """
        sides = [side for index in indices for side in (2 * index, 2 * index + 1)]
        documents = [self.documents[side] for side in sides]
        windows = pack([len(document) for document in documents], self.context_length)
        fullest = max(sum(len(documents[number]) for number in window) for window in windows)
        length = min(self.context_length, _rounded(fullest))
        tokens, _, ends = filled_windows(
            [[documents[number] for number in window] for window in windows], length
        )
        starts, positions = np.zeros(len(documents), np.int64), np.zeros_like(tokens)
        for row, window in enumerate(windows):
            for number, start in zip(window, [0, *ends[row]], strict=False):
                starts[number] = row * length + start
                size = len(documents[number])
                positions[row, start : start + size] = np.arange(size)
        places = [
            start + np.flatnonzero(document.targets != IGNORED)
            for start, document in zip(starts, documents, strict=True)
        ]
        n_places = _rounded(sum(map(len, places)))
        flat, wanted = np.zeros(n_places, np.int64), np.full(n_places, IGNORED, np.int64)
        of_sides = np.full((len(documents), _rounded(max(map(len, places)))), n_places, np.int64)
        first = 0
        for side, own in enumerate(places):
            end = first + len(own)
            flat[first:end], of_sides[side, : len(own)] = own, np.arange(first, end)
            wanted[first:end] = documents[side].targets[own - starts[side]]
            first = end
        return {
            "tokens": tokens,
            "positions": positions,
            "ends": ends,
            "places": flat,
            "targets": wanted,
            "of_sides": of_sides,
            "reference": self.reference[sides].astype(np.float32),
        }

    def in_groups(self, n_tokens: int) -> Iterator[list[int]]:
        """All pairs in order, in groups of at most `n_tokens` tokens, or of one pair."""
        group: list[int] = []
        size = 0
        for index in range(len(self)):
            own = len(self.documents[2 * index]) + len(self.documents[2 * index + 1])
            if group and size + own > n_tokens:
                yield group
                group, size = [], 0
            group.append(index)
            size += own
        if group:
            yield group


def packed_log_probabilities(model: "Transformer", rows: "dict[str, Tensor]") -> "Tensor":
    """Summed log-probability of what is trained of each side (2n,), in nats, of the `rows` of n pairs."""
    import torch.nn.functional as F

    from model.loss import target_nats

    states = model.hidden_states(rows["tokens"], rows["positions"], ends=rows["ends"]).flatten(0, 1)
    # Each place goes into one sum, and by its number: the order of additions is the same in every run.
    nats = F.pad(target_nats(model, states.index_select(0, rows["places"]), rows["targets"]), (0, 1))
    return -nats.index_select(0, rows["of_sides"].flatten()).view_as(rows["of_sides"]).sum(1)


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

    @property
    def isolate_documents(self) -> bool:
        """Always: a window holds sides of several pairs."""
        return True

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

        nats = packed_log_probabilities(model, batch)
        chosen, rejected = (nats - batch["reference"]).view(-1, 2).unbind(1)
        return -F.logsigmoid(self.beta * (chosen - rejected)).sum()
