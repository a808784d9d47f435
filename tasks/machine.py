"""The machine that a run computes on: nothing here enters a key or changes a result."""

import os
from functools import cache
from typing import Any, Self

from pydantic import Field, model_validator

from model.config import TrainingMachine


class Machine(TrainingMachine):
    """Where and how fast; a `machine:` section of the recipe, a file given with --machine, or detected."""

    workers: int = Field(0, ge=0, description="Processes that build shards side by side; 0 takes every core.")
    evaluation_batch: int = Field(32, ge=1, description="Requests in one forward pass of the benchmarks.")
    hang_seconds: float = Field(
        900.0, gt=0, description="Seconds without a finished training step after which training counts as hung."
    )

    @model_validator(mode="after")
    def _zero_fits(self) -> Self:
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile does not work at zero_stage 3: set compile to false or zero_stage to 2")
        return self

    def training(self) -> TrainingMachine:
        """The part that the training processes need."""
        return TrainingMachine.model_validate({name: getattr(self, name) for name in TrainingMachine.model_fields})

    @property
    def n_workers(self) -> int:
        """Number of worker processes, resolved."""
        return self.workers or available_cores()


@cache
def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def detect_device() -> dict[str, Any]:
    """The fields of `Machine` that this computer suggests: device and ranks. Imports torch."""
    import torch

    if torch.cuda.is_available():
        return {"device": "cuda", "ranks": torch.cuda.device_count()}
    return {"device": "cpu", "ranks": 1}
