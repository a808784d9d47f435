"""One call of a stage's function, and the record of it."""

import os
import platform
import resource
import socket
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.errors import StageFailed
from tasks.engine.manifest import Manifest
from tasks.engine.spec import Spec
from tasks.engine.stage import Metrics, Stage
from tasks.engine.store import Store


def host() -> dict[str, Any]:
    """The computer, for the record."""
    return {
        "name": socket.gethostname(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def peak_memory_bytes() -> int:
    """Peak memory of this process or of the largest of its finished children, in bytes."""
    return _usage()[1]


def _usage() -> tuple[float, int]:
    """CPU seconds of this process and its finished children, and the peak memory of the largest, in bytes."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    unit = 1 if sys.platform == "darwin" else 1024
    return cpu, max(own.ru_maxrss, children.ru_maxrss) * unit


@dataclass(frozen=True)
class Stopwatch:
    """What a build has cost since it began."""

    started: float
    cpu_seconds: float

    @classmethod
    def start(cls) -> "Stopwatch":
        """Begin now."""
        return cls(time.perf_counter(), _usage()[0])

    def manifest(self, spec: Spec, stage: Stage, key: str, metrics: Metrics, **fields: Any) -> Manifest:
        """The record of a finished build; `fields` are those that depend on its kind."""
        cpu_seconds, peak = _usage()
        return Manifest(
            stage=stage.name,
            key=key,
            metrics=metrics,
            seconds=round(time.perf_counter() - self.started, 3),
            cpu_seconds=round(cpu_seconds - self.cpu_seconds, 3),
            peak_memory_bytes=peak,
            machine=spec.machine.model_dump(mode="json"),
            host=host(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            **fields,
        )


def check_code(stage: Stage, spec: Spec) -> None:
    """Refuse to build, or to publish, under a key that was made from other code than what is on disk.

    Raises:
        StageFailed: if an edit came between.
    """
    if stage.code_of_values(spec.config) != spec.ingredients["code"]:
        raise StageFailed("its code was edited after the run began: run the same command again")


def call(stage: Stage, spec: Spec, store: Store, key: str, inputs: dict[str, Any], out: Path) -> Metrics:
    """Call the stage's function; returns its figures.

    Args:
        inputs: `Shard`, `Artifact` or `Piece` by name.
        out: folder that the function writes below.
    """
    extras: dict[str, Any] = {"out": out, "machine": spec.machine}
    if "work" in stage.extras:
        extras["work"] = store.work(stage.name, key)
        extras["work"].mkdir(mode=0o700, parents=True, exist_ok=True)
    given = {name: extras[name] for name in stage.extras if name in extras}
    metrics: Metrics = stage.fn(*stage.read_config(spec.config), **inputs, **given)
    check_code(stage, spec)
    return metrics


def sum_metrics(many: list[Metrics]) -> Metrics:
    """Sum numbers by name, through nested dictionaries; anything else is kept if it is equal everywhere."""
    total: Metrics = {}
    for metrics in many:
        for name, value in metrics.items():
            if isinstance(value, dict):
                total[name] = sum_metrics([total.get(name, {}), value])
            elif isinstance(value, int | float) and not isinstance(value, bool):
                total[name] = total.get(name, 0) + value
            elif total.setdefault(name, value) != value:
                total[name] = None
    return total
