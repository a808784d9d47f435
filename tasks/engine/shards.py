"""How a map stage is built: each missing shard by itself, here or by workers, then the list of all."""

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from pathlib import Path

from model.errors import StageFailed
from tasks.engine.call import Stopwatch, sum_metrics
from tasks.engine.clusters import LocalCluster, RayCluster
from tasks.engine.job import build_shard
from tasks.engine.keys import digest
from tasks.engine.manifest import OUT, Manifest, ShardRecord
from tasks.engine.pool import pool
from tasks.engine.progress import progress
from tasks.engine.slurm_cluster import build_on_slurm
from tasks.engine.spec import Spec
from tasks.engine.stage import Parts, Stage
from tasks.engine.store import Store

_POOL_SECONDS, _LARGE_BYTES, _LOOKED_AT = 4.0, 8_000_000, 32
"""Work that other processes are worth, since they import for some seconds before they begin; or the size, on disk, of the first
shards that are left, so many of them."""


def _are_large(spec: Spec, stage: Stage, positions: list[int]) -> bool:
    folders = (
        spec.inputs[name].shards[position]
        for position in positions[:_LOOKED_AT]
        for name in stage.shard_inputs
    )
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files) > _LARGE_BYTES


def _build_here(spec: Spec, spec_path: Path | None, stage: Stage, positions: list[int]) -> Iterator[bool]:
    """Build shards on this machine: in this process, and beside it in others as soon as enough is left to do."""
    waiting, started, done = list(positions), time.perf_counter(), 0
    with ExitStack() as stack:
        hand_over: Callable[[int], Future[bool]] | None = None
        handed_over: set[Future[bool]] = set()
        n_helpers = min(spec.machine.n_workers, len(waiting)) - 1
        while waiting or handed_over:
            if hand_over is None and n_helpers > 0 and spec_path and waiting:
                # The first shard has the imports of this process in it.
                left = (time.perf_counter() - started) / done * len(waiting) if done > 1 else 0.0
                if left > _POOL_SECONDS or (done == 0 and _are_large(spec, stage, waiting)):
                    hand_over = stack.enter_context(pool(spec_path, n_helpers))
            # More than they work at, so that none waits while this process is at a large shard of its own; in the end one more, so
            # that all are ready together.
            ahead = n_helpers * max(2, len(waiting) // (2 * (n_helpers + 1)))
            while hand_over and len(waiting) > 1 and len(handed_over) < ahead:
                handed_over.add(hand_over(waiting.pop()))
            if waiting:
                yield build_shard(spec, waiting.pop(0))
                done += 1
            finished, handed_over = wait(handed_over, 0 if waiting else None, FIRST_COMPLETED)
            for job in finished:
                yield job.result()


def _build(spec: Spec, spec_path: Path | None, stage: Stage, positions: list[int]) -> Iterator[bool | str]:
    """Build shards where the machine says; yields for each whether it was built, and what else there is to say."""
    cluster = spec.machine.cluster
    if spec.machine.is_local or isinstance(cluster, LocalCluster) or not positions:
        return _build_here(spec, spec_path, stage, positions)
    assert spec_path is not None, "a build on a cluster has a spec file"
    if isinstance(cluster, RayCluster):
        from tasks.engine.ray_cluster import build_on_ray

        return build_on_ray(cluster, spec_path, stage.name, positions)
    return build_on_slurm(cluster, spec_path, stage.name, positions)


def _build_shards(spec: Spec, spec_path: Path | None, stage: Stage, positions: list[int]) -> int:
    """Build the shards at `positions`; returns how many were built."""
    assert spec.shard_keys is not None
    total, built = len(spec.shard_keys), 0
    finished, unit = total - len(positions), "pieces" if stage.list_pieces else "shards"
    progress(finished, total, unit)
    for done in _build(spec, spec_path, stage, positions):
        if isinstance(done, bool):
            built += done
            finished += 1
        progress(finished, total, unit, "" if isinstance(done, bool) else done)
    return built


def _record(stage: Stage, manifest: Manifest) -> ShardRecord:
    parts = tuple(manifest.shard_digests()) if stage.several else None
    return ShardRecord(key=manifest.key, digest=manifest.digest, parts=parts)


def build_map(spec: Spec, spec_path: Path | None, stage: Stage, store: Store) -> int:
    """Build the missing shards and publish the list of all; returns how many were built.

    Args:
        spec_path: file that holds `spec`, from which workers read it; None without workers.

    Raises:
        StageFailed: if a shard fails, or a finished one was removed meanwhile.
        InputError: if the last word of the stage is that there is nothing to go on with.
    """
    assert spec.shard_keys is not None
    watch = Stopwatch.start()
    for name in stage.artifact_inputs:
        if name in spec.inputs:
            spec.inputs[name].check(store)
    if spec.only_shard is not None:
        return _build_shards(spec, spec_path, stage, [spec.only_shard])
    first_with_key = {key: position for position, key in reversed(list(enumerate(spec.shard_keys)))}
    missing = [
        position
        for key, position in sorted(first_with_key.items(), key=lambda item: item[1])
        if spec.force or not store.find_whole("shards", stage.name, key)
    ]
    built = _build_shards(spec, spec_path, stage, missing[: spec.first_shards])
    if spec.first_shards is not None:
        return built
    shards = [shard for key in spec.shard_keys if (shard := store.find("shards", stage.name, key))]
    if len(shards) != len(spec.shard_keys):
        raise StageFailed("a finished shard was removed from the store meanwhile", retryable=True)
    manifests = [shard.manifest for shard in shards]
    metrics = sum_metrics([manifest.metrics for manifest in manifests])
    building = store.building(stage.name, spec.key)
    if stage.finish:
        parts = Parts(tuple(shard.out for shard in shards), metrics, spec.pieces, building / OUT)
        metrics = stage.finish(*stage.read_config(spec.config), parts)
    records = [_record(stage, manifest) for manifest in manifests]
    whole = digest([record.digest for record in records])
    manifest = watch.manifest(
        spec, stage, spec.key, metrics, digest=whole, ingredients=spec.ingredients, shards=records
    )
    store.publish("artifacts", manifest, building)
    shutil.rmtree(store.attempts(stage.name, spec.key), ignore_errors=True)
    return built
