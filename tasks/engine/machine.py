"""The machine that a run computes on: nothing here enters a key or changes a result."""

from typing import Self

from pydantic import Field, model_validator

from model.errors import InputError
from model.machine import TrainingMachine, available_cores
from tasks.engine.clusters import Cluster, LocalCluster


class Machine(TrainingMachine):
    """Where and how fast; a `machine:` section of the recipe, a file given with --machine, or detected."""

    workers: int = Field(0, ge=0, description="Processes that build shards side by side; 0 takes every core.")
    cluster: Cluster = Field(
        LocalCluster(kind="local"), description="Where shards are built: here, on Ray or on Slurm."
    )
    nodes: int = Field(
        0,
        ge=0,
        description="Computers that train and evaluate, each with its part of the ranks. 0: this one. More: so many nodes of the Ray or Slurm "
        "cluster; without one, this computer and others on which `scratchlm join` runs.",
    )
    in_process: bool = Field(
        False,
        description="Build, train and evaluate in one process, without workers, torchrun and its watch; `scratchlm task` does.",
    )
    evaluation_batch: int = Field(
        32, ge=1, description="Requests or conversations in one forward pass of an evaluation."
    )
    hang_seconds: float = Field(
        900.0,
        gt=0,
        description="Seconds without news of a rank, a training step or something read, after which the ranks count as hung.",
    )

    @model_validator(mode="after")
    def _zero_fits(self) -> Self:
        if self.compile is True and self.zero_stage == 3:
            raise ValueError("compile does not work at zero_stage 3: set compile to false or zero_stage to 2")
        return self

    def training(self) -> TrainingMachine:
        """The part that the training processes need, with device and ranks resolved. Imports torch unless all is given.

        Raises:
            InputError: if it asks for a device that is not there.
        """
        values = {name: getattr(self, name) for name in TrainingMachine.model_fields}
        if self.in_process:
            values["ranks"] = 1
        elif self.nodes and self.ranks % self.nodes:
            raise InputError(
                f"machine.ranks {self.ranks} cannot be shared by machine.nodes {self.nodes}: take a multiple"
            )
        elif self.nodes and not self.is_local and not (self.ranks and self.device != "auto"):
            raise InputError(
                f"machine.nodes is {self.nodes}, on a cluster: say machine.device and machine.ranks (of all nodes together), since "
                "this computer does not tell what those have"
            )
        if self.device == "cpu":
            values["ranks"] = values["ranks"] or max(1, self.nodes)
        else:
            import torch

            elsewhere = self.nodes and not self.is_local
            if self.device == "cuda" and not elsewhere and not torch.cuda.is_available():
                raise InputError(
                    "machine.device is cuda, and torch finds no CUDA device here: set it to cpu or auto"
                )
            if self.device == "auto":
                values["device"] = "cuda" if torch.cuda.is_available() else "cpu"
            own = torch.cuda.device_count() if values["device"] == "cuda" else 1
            values["ranks"] = values["ranks"] or own * max(1, self.nodes)
        return TrainingMachine.model_validate(values)

    @property
    def is_local(self) -> bool:
        """Whether shards are built on this machine alone."""
        return self.in_process or isinstance(self.cluster, LocalCluster)

    @property
    def is_shared(self) -> bool:
        """Whether other computers take part, so that they have to know who builds what."""
        return not self.in_process and (not self.is_local or self.nodes > 1)

    @property
    def n_workers(self) -> int:
        """Number of worker processes, resolved."""
        return 1 if self.in_process else self.workers or available_cores()
