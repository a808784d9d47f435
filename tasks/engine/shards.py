"""How a map stage is built: each missing shard by itself, here or by workers, then the list of all."""

import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue

from model.errors import StageFailed
from tasks.engine.call import Stopwatch, sum_metrics
from tasks.engine.clusters import LocalCluster, RayCluster
from tasks.engine.failures import error_of
from tasks.engine.job import build_shard
from tasks.engine.keys import digest
from tasks.engine.manifest import OUT, Manifest, ShardRecord
from tasks.engine.pool import Told, helpers
from tasks.engine.progress import progress
from tasks.engine.slurm_cluster import build_on_slurm
from tasks.engine.spec import Spec
from tasks.engine.stage import Parts, Stage
from tasks.engine.store import Store

_HELP_SECONDS, _LARGE_BYTES, _LOOKED_AT = 4.0, 8_000_000, 32
"""Work that other processes are worth, since they import for some seconds before they begin; or the size, on disk, of the first
shards that are left, so many of them."""


def _are_large(spec: Spec, stage: Stage, positions: Iterable[int]) -> bool:
    folders = (spec.inputs[name].shards[position] for position in positions for name in stage.shard_inputs)
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files) > _LARGE_BYTES


def _are_worth_help(seconds: float, done: int, waiting: int) -> bool:
    """Whether so many shards that wait are worth other processes, after some were built here in `seconds`."""
    # The first has the imports of this process in it.
    of_one = seconds / done if done > 1 else max(0.0, seconds - _HELP_SECONDS)
    return of_one * waiting > _HELP_SECONDS


def _result(job: "Future[Told]") -> bool:
    told = job.result()
    if isinstance(told, bool):
        return told
    print(told["traceback"], file=sys.stderr)
    raise error_of(told, told["error"])


def _build_here(spec: Spec, spec_path: Path | None, stage: Stage, positions: list[int]) -> Iterator[bool]:
    """Build shards on this machine: in this process, and beside it in others as soon as enough is left to do."""
    waiting, started, done, left = deque(positions), time.perf_counter(), 0, len(positions)
    told: SimpleQueue[Future[Told]] | None = None
    with ExitStack() as stack:
        while waiting:
            n_helpers = min(spec.machine.n_workers, len(waiting)) - 1
            if told is None and n_helpers > 0 and spec_path:
                is_large = done == 0 and _are_large(spec, stage, positions[:_LOOKED_AT])
                if is_large or _are_worth_help(time.perf_counter() - started, done, len(waiting)):
                    told = stack.enter_context(helpers(spec_path, n_helpers, waiting))
            try:
                position = waiting.popleft()
            except IndexError:  # a helper took the last one
                break
            yield build_shard(spec, position)
            done, left = done + 1, left - 1
            while told and not told.empty():
                yield _result(told.get())
                left -= 1
        while told and left:
            yield _result(told.get())
            left -= 1


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


def build_map(spec: Spec, building: Path, spec_path: Path | None, stage: Stage, store: Store) -> int:
    """Build the missing shards and publish the list of all; returns how many were built.

    Args:
        building: the folder to build in, with an empty out/.
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
    with suppress(FileNotFoundError):
        os.listdir(store.root / "shards" / stage.name)  # NFS remembers for a while what was not there
    shards = [shard for key in spec.shard_keys if (shard := store.find("shards", stage.name, key))]
    if len(shards) != len(spec.shard_keys):
        raise StageFailed("a finished shard was removed from the store meanwhile", retryable=True)
    manifests = [shard.manifest for shard in shards]
    metrics = sum_metrics([manifest.metrics for manifest in manifests])
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
