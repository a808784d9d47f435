"""How a map stage is built: each missing shard by itself, here or by workers, then the list of all."""

import time
from collections.abc import Iterator
from pathlib import Path

from model.errors import StageFailed
from tasks.engine.call import Stopwatch, sum_metrics
from tasks.engine.clusters import LocalCluster, RayCluster
from tasks.engine.job import build_shard
from tasks.engine.keys import digest
from tasks.engine.manifest import OUT, Manifest, ShardRecord
from tasks.engine.pool import build_in_pool
from tasks.engine.progress import progress
from tasks.engine.slurm_cluster import build_on_slurm
from tasks.engine.spec import Spec
from tasks.engine.stage import Parts, Stage
from tasks.engine.store import Store

_SMALL_BYTES, _HERE_SECONDS = 4_000_000, 4.0


def _is_small(spec: Spec, stage: Stage, position: int) -> bool:
    folders = [spec.inputs[name].shards[position] for name in stage.shard_inputs]
    return (
        sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
        < _SMALL_BYTES
    )


def _build_in_turn(spec: Spec, stage: Stage, positions: list[int]) -> Iterator[bool]:
    """Build shards at `positions` until all are built, or workers would be faster; those are taken out."""
    deadline = time.perf_counter() + _HERE_SECONDS
    while positions and spec.machine.is_local:
        # Small shards are built here for the first seconds, which workers need for their imports.
        wants_workers = spec.machine.n_workers > 1 and len(positions) > 1
        if wants_workers and (time.perf_counter() > deadline or not _is_small(spec, stage, positions[0])):
            return
        yield build_shard(spec, positions.pop(0))


def _build_shards(spec: Spec, spec_path: Path | None, stage: Stage, positions: list[int]) -> int:
    """Build the shards at `positions`; returns how many were built."""
    assert spec.shard_keys is not None
    total, built = len(spec.shard_keys), 0
    finished, unit = total - len(positions), "pieces" if stage.list_pieces else "shards"
    progress(finished, total, unit)
    waiting = list(positions)

    def by_workers() -> Iterator[bool | str]:
        assert spec_path is not None, "without a spec file there is one worker"
        cluster = spec.machine.cluster
        if spec.machine.is_local or isinstance(cluster, LocalCluster):
            return build_in_pool(spec_path, waiting, spec.machine.n_workers)
        if isinstance(cluster, RayCluster):
            from tasks.engine.ray_cluster import build_on_ray

            return build_on_ray(cluster, spec_path, stage.name, waiting)
        return build_on_slurm(cluster, spec_path, stage.name, waiting)

    def here() -> Iterator[bool | str]:
        return _build_in_turn(spec, stage, waiting)

    for way in (here, by_workers):
        for done in way() if waiting else ():
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
    return built
