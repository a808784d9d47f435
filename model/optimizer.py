"""Optimizers and the learning-rate schedule."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from model.config import TrainConfig

# Coefficients of the first iterations of Polar Express (Amsel et al. 2025, arXiv 2505.16932, algorithm 1).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices of a stack (N, rows, columns), approximately.

    Newton-Schulz iterations with Polar Express coefficients: singular values move towards 1.
    """
    transposed = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if transposed else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Unlike `torch.optim.Muon` it works in the dtype of the parameters (bfloat16 products are
    slow on many CPUs), takes all matrices of one shape in one product, and needs three
    iterations instead of five.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    gradient, buffer = parameter.grad, state["momentum_buffer"]
                    assert gradient is not None
                    buffer.lerp_(gradient, 1 - group["momentum"])
                    updates.append(torch.lerp(gradient, buffer, group["momentum"]))
                rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                for parameter, update in zip(parameters, orthogonalize(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-rate)


class Together(torch.optim.Optimizer):
    """Several optimizers that step as one; their parameter groups are shared, not copied."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update by each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of each, in order."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `config` names, over the parameters of `model`.

    Weight decay is for matrices only. Muon gets the matrices of the blocks; embedding,
    head and gains get AdamW.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    muon = (
        [p for name, p in named if name.startswith("blocks.") and p.ndim == 2]
        if config.optimizer == "muon"
        else []
    )
    taken = {id(p) for p in muon}
    rest = [p for _, p in named if id(p) not in taken]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.adam_epsilon,
        fused=True,
    )
    if not muon:
        return adamw
    return Together([Muon(muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay), adamw])


def rate_at(config: TrainConfig, step: int) -> float:
    """Learning rate of `step` (from 0) as a share of the peak: warm-up, plateau, decay."""
    n_steps = config.n_steps
    warmup, decay = config.warmup_fraction * n_steps, config.decay_fraction * n_steps
    rising = min(1.0, (step + 1) / warmup) if warmup >= 1 else 1.0
    remaining = min(1.0, (n_steps - step) / decay) if decay >= 1 else 1.0
    if config.decay == "cosine":
        remaining = 0.5 * (1 - math.cos(math.pi * remaining))
    return rising * (config.final_rate + (1 - config.final_rate) * remaining)


def muon_momentum_at(config: TrainConfig, step: int) -> float:
    """Muon's momentum at `step`: from 0.85 to 0.95 over the first tenth (modded-nanogpt's warm-up)."""
    return 0.85 + 0.10 * min(1.0, step / max(1.0, 0.1 * config.n_steps))


def set_rates(config: TrainConfig, optimizer: torch.optim.Optimizer, step: int) -> float:
    """Set rates and momentum of `step` in every group; returns the share of the peak.

    A pure function of the step, so a resumed run needs no scheduler state.
    """
    share = rate_at(config, step)
    for group in optimizer.param_groups:
        if "momentum" in group:
            group["lr"] = config.muon_learning_rate * share
            group["momentum"] = muon_momentum_at(config, step)
        else:
            group["lr"] = config.learning_rate * share
    return share
