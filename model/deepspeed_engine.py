"""DeepSpeed as the trainer uses it: its process group, its configuration, and the module that it calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.objectives.objective import Objective
from model.transformer import Transformer


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """The group of all ranks while the body runs: gloo on a CPU, else NCCL."""
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # The shared-memory op serves inference only, and compiling it costs a minute on a CPU.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", verbose=False)
    try:
        yield
    finally:
        deepspeed.comm.destroy_process_group()


class Learner(nn.Module):
    """A model with what it is trained for, as DeepSpeed calls them.

    Args:
        dtype: compute type of the products; None computes in that of the weights.
    """

    def __init__(self, model: Transformer, objective: Objective, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.objective, self.dtype = model, objective, dtype

    def forward(self, tokens: Tensor, denominator: float | None = None, **batch: Tensor) -> Tensor:
        """The loss of a batch divided by `denominator`, a scalar; logits (B, T, V) of the tokens if there is none."""
        # Here and not around the call: DeepSpeed's engine switches off the autocast of its caller.
        with torch.autocast(tokens.device.type, self.dtype, enabled=self.dtype is not None):
            if denominator is None:
                return self.model(tokens)
            return self.objective.loss(self.model, {"tokens": tokens, **batch}) / denominator


def start_engine(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    micro_batch: int,
    accumulation: int,
    clipping: float,
    zero_stage: int,
) -> tuple[Any, torch.optim.Optimizer]:
    """DeepSpeed's engine around a learner, and the optimizer that it made of ours.

    Args:
        micro_batch: rows of a forward pass of one rank.
        accumulation: forward passes in a step of one rank.
        clipping: largest global gradient norm; 0 clips nothing.
    """
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # DeepSpeed clips at 1.0 unless it is told otherwise.
        "gradient_clipping": clipping,
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        # It waits for the device twice in every micro-batch.
        "timers": {"throughput": {"enabled": False}},
    }
    engine, wrapped, _, _ = deepspeed.initialize(model=learner, optimizer=optimizer, config=config)
    return engine, wrapped


@contextmanager
def whole_parameters(module: nn.Module, zero_stage: int) -> Iterator[None]:
    """Have every parameter whole on every rank while the body runs: at stage 3 each rank holds a part."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(
        list(module.parameters()), modifier_rank=None, enabled=zero_stage == 3
    ):
        yield
