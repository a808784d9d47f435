"""What an objective is: the rows that a batch is made of, what is measured meanwhile, and the loss.

An objective is a `Config` with these methods in a file of its own. The trainer knows this
protocol and no objective, so an edit of one retrains nothing that was trained by another.
torch is imported by `loss` alone: the process that watches the ranks asks for rows, and needs no torch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from model.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from model.transformer import Transformer

Window = tuple[np.ndarray, ...]
"""Inputs and targets (T,), int64; and where documents do not see each other, their ends (M,), of one length in all windows."""


class Rows(Protocol):
    """What a batch is made of: a pure function of (seed, step), the same on any number of ranks."""

    def __len__(self) -> int:
        """Rows of one epoch."""

    def trained_targets(self, step: int, rows_per_batch: int, seed: int) -> int:
        """What the loss of the whole batch of `step` is a mean over: targets, or pairs."""

    def document_ids(self, step: int, rows_per_batch: int, seed: int) -> list[str]:
        """Ids of the documents that the whole batch of `step` is made of, each once."""

    def batch(
        self, step: int, rows_per_batch: int, seed: int, first: int, count: int
    ) -> dict[str, np.ndarray]:
        """Rows `first` to `first + count` of the batch of `step`, by the name under which `loss` takes them."""


class Objective(Protocol):
    """What a model is trained to do."""

    @property
    def windows_per_row(self) -> int:
        """Windows of the context length in a row."""

    @property
    def isolate_documents(self) -> bool:
        """Whether a token attends to its own document only."""

    def open_rows(self, shards: Sequence[Tokens], context_length: int) -> Rows:
        """The rows of these token files."""

    def validation_windows(
        self, shards: Sequence[Tokens], context_length: int, n_tokens: int
    ) -> list[Window]:
        """About `n_tokens` tokens of held-out files, to measure bits per byte on while it trains."""

    def loss(self, model: "Transformer", batch: "dict[str, Tensor]") -> "Tensor":
        """The loss of a batch, summed over what `trained_targets` counts: a scalar, in nats."""
