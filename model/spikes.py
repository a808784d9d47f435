"""Spikes: steps whose loss or gradient stands out from those before them, and what was read in them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_STEPS, _LEAST, _DEVIATIONS = 128, 64, 6.0
"""The last steps that one is compared with, how many there must be, and how far it stands out (the defaults of OLMo-core's
optimizers that skip steps, `olmo_core.optim.SkipStepOptimizer`)."""


class Spikes:
    """Loss and norm of the gradient of the last steps, on the device: whether a step is a spike is known without waiting for it.

    What is remembered of a spike is where spikes begin, so that one does not hide the next, and a loss that stays where it
    jumped to is no spike for ever.
    """

    def __init__(self, device: str, n_ranks: int) -> None:
        self.n_ranks = n_ranks
        self.last = torch.zeros(2, _STEPS, device=device)
        self.count = 0
        self.loss: Tensor | None = None
        self.judged: Tensor | None = None

    def begin(self, loss: Tensor) -> None:
        """Hear of a step whose gradient is there: the mean loss of this rank, a scalar."""
        self.loss, self.judged = loss, None

    def judge(self, norm: Callable[[], Tensor]) -> Tensor:
        """Mean loss of all ranks, norm of the gradient, and 1.0 if the step is a spike, else 0.0: (3,), the same on every rank.

        Every rank asks at the same point of a step; asked again, it answers the same.

        Args:
            norm: gives the norm of the gradient of all ranks, a scalar.
        """
        if self.judged is None:
            assert self.loss is not None
            loss = self.loss / self.n_ranks
            if self.n_ranks > 1:
                dist.all_reduce(loss)
            measured = torch.stack((loss, norm().to(loss)))
            seen = self.last[:, : min(self.count, _STEPS)]
            highest = torch.full_like(measured, torch.inf)
            if self.count >= _LEAST:
                highest = seen.mean(1) + _DEVIATIONS * seen.std(1)
            is_spike = (measured > highest).any().to(loss)
            kept = torch.minimum(measured, highest)
            # A step that is no number is another matter, and leaves what is remembered as it is.
            usual = seen.mean(1) if self.count else torch.zeros_like(kept)
            self.last[:, self.count % _STEPS] = torch.where(torch.isfinite(measured), kept, usual)
            self.count += 1
            self.judged = torch.cat((measured, is_spike.view(1)))
        return self.judged

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; waits for the device."""
        return {"last": self.last.tolist(), "count": self.count}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.count = state["count"]
        self.last.copy_(torch.tensor(state["last"]))
