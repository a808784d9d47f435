"""Where shards are built: this machine, a Ray cluster or a Slurm cluster; a section of `machine`."""

import re
from enum import Enum
from typing import Annotated, Literal

from pydantic import Field, field_validator

from model.base_config import Config

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class CutOff(Enum):
    """Why a cluster ended a job, in Slurm's words."""

    TIME = "TIMEOUT"
    PREEMPTION = "PREEMPTED"


class LocalCluster(Config):
    """Processes of this machine."""

    kind: Literal["local"] = Field("local", description="local: processes of this machine.")


class RayCluster(Config):
    """Nodes of a Ray cluster that see the store, and have the same code and libraries."""

    kind: Literal["ray"] = Field(description="ray: tasks of a Ray cluster.")
    address: str = Field(
        "auto",
        description="Where the cluster is: auto (RAY_ADDRESS, or the one on this machine), HOST:PORT, or ray://HOST:PORT from outside.",
    )
    cpus_per_job: float = Field(
        1.0, gt=0, description="Cores that a job takes of a node; each rank of a training, too."
    )
    memory_per_job: str = Field(
        "2GB", description="Memory that a job takes of a node, such as 500MB or 2GB; by this Ray places jobs."
    )

    @field_validator("memory_per_job")
    @classmethod
    def _is_a_size(cls, text: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)?\s*[kKmMgGtT]?[bB]?", text):
            raise ValueError(f"{text!r} is no size: write it as 500MB or 2GB")
        return text

    @property
    def memory_bytes(self) -> int:
        """Memory of a job, in bytes."""
        number, unit = re.fullmatch(r"([\d.]+)\s*([kKmMgGtT]?)[bB]?", self.memory_per_job).groups()  # type: ignore[union-attr]
        return int(float(number) * _UNITS[unit.lower()])


_DECIDED = {
    "job-name": "by the names of its jobs a run finds what a killed one left",
    **dict.fromkeys(("array", "output", "error", "chdir", "open-mode", "wrap"), "scratchlm decides it"),
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), "set machine.nodes and machine.ranks"),
    "partition": "set machine.cluster.partition",
    "time": "set machine.cluster.time",
    "cpus-per-task": "set machine.cluster.cpus_per_job",
}
"""Options of sbatch that are not to be given, and why."""


class SlurmCluster(Config):
    """Nodes of a Slurm cluster that see the store, and have the same code and libraries."""

    kind: Literal["slurm"] = Field(description="slurm: an array of batch jobs.")
    partition: str | None = Field(None, description="Partition; the default one if empty.")
    jobs: int = Field(100, ge=1, le=1000, description="Most jobs at once: tasks of the array.")
    time: str = Field(
        "4:00:00",
        pattern=r"^(\d+-)?\d+(:\d+){0,2}$",
        description="Longest time of a job, [D-]H:M:S; what it did not come to goes into the next one, and a training goes on there.",
    )
    cpus_per_job: int = Field(
        1, ge=1, description="Cores of a job; a node of a training has so many for each of its ranks."
    )
    sbatch: dict[str, str] = Field(
        {},
        description="More options of sbatch by their long names, such as account or mem-per-cpu; an empty value is a flag.",
    )
    sbatch_of_training: dict[str, str] = Field(
        {},
        description="The same for trainings alone, beside those of sbatch: gpus-per-node, say, which no other job has use for.",
    )

    @field_validator("sbatch", "sbatch_of_training")
    @classmethod
    def _decided_is_left_out(cls, options: dict[str, str]) -> dict[str, str]:
        for name, why in _DECIDED.items():
            if name in options:
                raise ValueError(f"{name} is not to be given: {why}")
        return options


Cluster = Annotated[LocalCluster | RayCluster | SlurmCluster, Field(discriminator="kind")]
