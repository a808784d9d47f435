"""Workers of a Ray cluster: a task for each shard.

Ray tasks, and not datatrove's RayPipelineExecutor: that knows ranks of a pipeline and files of what is completed, where
here the store alone says what is done, and a shard may belong to any stage. When the driver ends, in whatever way, Ray
ends its tasks; what a lost node had begun, Ray begins elsewhere.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.errors import InputError, StageFailed
from tasks.engine.clusters import RayCluster
from tasks.engine.failures import raise_described
from tasks.engine.worker import build_one, examine

_DOCTOR_SECONDS = 120.0
_WINDOW, _POLL_SECONDS, _LOST_NODES = 1000, 1.0, 5


def connect(cluster: RayCluster) -> Any:
    """The module ray, connected to the cluster as a driver.

    Raises:
        InputError: if ray is not installed, or the cluster is not there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise InputError(
            "machine.cluster is ray, and ray is not installed: pip install 'scratchlm[ray]'"
        ) from None
    if not ray.is_initialized():
        try:
            # Workers find the code as the driver does. What else is in its environment may be secret, and Ray shows
            # everybody what it is given here.
            path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {}
            ray.init(
                address=cluster.address,
                log_to_driver=False,
                logging_level=logging.WARNING,
                runtime_env={"env_vars": path} if path else None,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"machine.cluster.address {cluster.address!r}: no Ray cluster answers there ({error}): start it with "
                "`ray start --head`, or correct the address"
            ) from error
    return ray


def _why_waiting(ray: Any, cluster: RayCluster) -> str:
    """That no node of now can hold a job at all; nothing else, since others may be on their way."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = any(
        node.get("CPU", 0) >= cluster.cpus_per_job and node.get("memory", 0) >= cluster.memory_bytes
        for node in nodes
    )
    wanted = f"{cluster.cpus_per_job:g} cores and {cluster.memory_per_job}"
    return "" if fits else f", and no node has {wanted} (machine.cluster)"


def build_on_ray(
    cluster: RayCluster, spec_path: Path, stage: str, positions: Sequence[int]
) -> Iterator[bool | str]:
    """Build the shards at `positions`; yields for each whether it was built, and in between how many wait.

    Raises:
        InputError, StageFailed: as a shard does, with its position and its node; or if tasks are lost again and again.
    """
    ray = connect(cluster)
    remote = ray.remote(
        num_cpus=cluster.cpus_per_job, memory=cluster.memory_bytes, max_retries=_LOST_NODES, max_calls=0
    )(build_one)
    waiting: list[int] = list(positions)
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < _WINDOW:
                position = waiting.pop(0)
                running[remote.remote(spec_path, position)] = position
            done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
            if not done:
                yield f"{len(running) + len(waiting)} jobs on Ray{_why_waiting(ray, cluster)}"
            for reference in done:
                position = running.pop(reference)
                try:
                    told = ray.get(reference)
                except ray.exceptions.RayError as error:
                    first = str(error).strip().split("\n")[0]
                    raise StageFailed(
                        f"shard {position} of {stage} was lost on Ray ({type(error).__name__}: {first}): if for want of memory, "
                        "raise machine.cluster.memory_per_job",
                        retryable=True,
                    ) from error
                if "error" in told:
                    print(told["traceback"], flush=True)
                    raise_described(told, stage)
                yield bool(told["built"])
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def examine_nodes(cluster: RayCluster, folder: Path) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """What each node of the cluster has, see `tasks.engine.worker.examine`; which did not say; and which failed at it."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray = connect(cluster)
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    remote = ray.remote(num_cpus=0)(examine)
    strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    asked = [remote.options(scheduling_strategy=strategy).remote(folder) for strategy in strategies]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_DOCTOR_SECONDS)
    told, unheard, failed = [], [], []
    for host, node in zip(nodes.values(), asked, strict=True):
        if node not in answered:
            unheard.append(f"{host} (no answer within {_DOCTOR_SECONDS:.0f} s)")
            ray.cancel(node, force=True)
            continue
        try:
            told.append(ray.get(node))
        except ray.exceptions.RayError as error:
            failed.append(f"{host} ({(str(error).splitlines() or [type(error).__name__])[-1]})")
    return told, unheard, failed
