"""Averages of the weights over the last steps: less noise than the weights of any one of them.

Exponential moving averages (Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; as
used by Izmailov et al. 2018, arXiv 1803.05407, and others for networks). Each rank averages what its optimizer moves.
"""

import torch
from torch import Tensor


class WeightAverage:
    """The running average of some weights.

    Args:
        weights: what is averaged.
        share: share of the steps that the average reaches back, on average; 0 averages nothing.
    """

    def __init__(self, weights: list[Tensor], share: float, n_steps: int) -> None:
        self.weights = weights if share else []
        self.means = [weight.detach().clone() for weight in self.weights]
        self.least_pull = 1 / max(1.0, share * n_steps)

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after another step.

        Args:
            steps: that were taken by now. Of the first ones it is the plain mean, so nothing stays in it of the random
                weights before them.
        """
        if self.means:
            torch._foreach_lerp_(self.means, self.weights, max(self.least_pull, 1 / steps))
