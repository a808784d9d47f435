"""Averages of the weights over the last steps: less noise than the weights of any one of them.

Exponential moving averages (Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; as
used by Izmailov et al. 2018, arXiv 1803.05407, and others for networks). Every rank keeps the whole of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.transformer import Transformer

FILE = "average.safetensors"


class WeightAverage:
    """The running average of the trained weights of a model.

    Args:
        share: share of the steps that the average reaches back, on average; 0 averages nothing.
    """

    def __init__(self, model: Transformer, share: float, n_steps: int) -> None:
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.weights = trained if share else {}
        self.means = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.least_pull = 1 / max(1.0, share * n_steps)

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after another step.

        Args:
            steps: that were taken by now. Of the first ones it is the plain mean, so nothing stays in it of the random
                weights before them.
        """
        if self.means:
            pull = max(self.least_pull, 1 / steps)
            torch._foreach_lerp_(list(self.means.values()), list(self.weights.values()), pull)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the averages in the place of the weights while the body runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, weight in self.weights.items():
            weight.data, self.means[name] = self.means[name], weight.data

    def save(self, folder: Path) -> None:
        """Write the averages below `folder`, beside a checkpoint; nothing if there are none."""
        if self.means:
            save_file({name: mean.cpu().contiguous() for name, mean in self.means.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Take back what `save` wrote."""
        if self.means:
            saved = load_file(folder / FILE)
            for name, mean in self.means.items():
                mean.copy_(saved[name])
