"""How a map stage is built: each missing shard by itself, here or in a pool of processes, then the list of all."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from model.errors import StageFailed
from tasks.engine import process
from tasks.engine.call import Stopwatch, call, sum_metrics
from tasks.engine.keys import digest
from tasks.engine.manifest import OUT, ShardRecord
from tasks.engine.progress import progress
from tasks.engine.spec import Spec
from tasks.engine.stage import Shard, Stage, load_stage
from tasks.engine.store import Store

_SMALL_BYTES, _POOL_SECONDS = 4_000_000, 4.0


def _build_shard(spec: Spec, position: int) -> bool:
    """Build one shard unless it is there; returns whether it was built."""
    store, stage = Store(spec.store), load_stage(spec.stage)
    assert spec.shard_keys is not None
    key = spec.shard_keys[position]
    with store.lock(stage.name, key):
        if not spec.force and store.find_whole("shards", stage.name, key):
            return False
        building, watch = store.start_building(stage.name, key), Stopwatch.start()
        for name in stage.shard_inputs:
            store.check_input(spec.inputs[name].shards[position])
        inputs: dict[str, Any] = {
            name: Shard(spec.inputs[name].shards[position]) for name in stage.shard_inputs
        }
        inputs |= {
            name: spec.inputs[name].artifact() for name in stage.artifact_inputs if name in spec.inputs
        }
        metrics = call(stage, spec, store, key, inputs, building / OUT)
        store.publish(
            "shards", watch.manifest(spec, stage, key, metrics, digest="", ingredients={}), building
        )
        return True


def _is_small(spec: Spec, stage: Stage, position: int) -> bool:
    folders = [spec.inputs[name].shards[position] for name in stage.shard_inputs]
    return (
        sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
        < _SMALL_BYTES
    )


def _build_in_turn(spec: Spec, stage: Stage, positions: list[int]) -> Iterator[bool]:
    """Build shards at `positions` until all are built, or a pool of processes would be faster; those are taken out."""
    deadline = time.perf_counter() + _POOL_SECONDS
    while positions:
        # Small shards are built here for the first seconds, which a pool needs for its imports.
        wants_pool = spec.machine.n_workers > 1 and len(positions) > 1
        if wants_pool and (time.perf_counter() > deadline or not _is_small(spec, stage, positions[0])):
            return
        yield _build_shard(spec, positions.pop(0))


def _build_in_pool(spec: Spec, positions: list[int]) -> Iterator[bool]:
    workers = min(len(positions), spec.machine.n_workers)
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=process.die_with_parent,
        initargs=(os.getpid(),),
    )
    try:
        for job in as_completed([pool.submit(_build_shard, spec, position) for position in positions]):
            yield job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _build_shards(spec: Spec, stage: Stage, positions: list[int]) -> int:
    """Build the shards at `positions`; returns how many were built."""
    assert spec.shard_keys is not None
    total, built = len(spec.shard_keys), 0
    finished = total - len(positions)
    progress(finished, total, "shards")
    waiting = list(positions)
    for way in (_build_in_turn(spec, stage, waiting), _build_in_pool(spec, waiting)):
        for was_built in way if waiting else ():
            built += was_built
            finished += 1
            progress(finished, total, "shards")
    return built


def build_map(spec: Spec, stage: Stage, store: Store) -> int:
    """Build the missing shards and publish the list of all; returns how many were built.

    Raises:
        StageFailed: if a shard fails, or a finished one was removed meanwhile.
        InputError: if the stage's check finds nothing to go on with.
    """
    assert spec.shard_keys is not None
    watch = Stopwatch.start()
    for name in stage.artifact_inputs:
        if name in spec.inputs:
            spec.inputs[name].check(store)
    if spec.only_shard is not None:
        return _build_shards(spec, stage, [spec.only_shard])
    first_with_key = {key: position for position, key in reversed(list(enumerate(spec.shard_keys)))}
    missing = [
        position
        for key, position in sorted(first_with_key.items(), key=lambda item: item[1])
        if spec.force or not store.find_whole("shards", stage.name, key)
    ]
    built = _build_shards(spec, stage, missing[: spec.first_shards])
    if spec.first_shards is not None:
        return built
    shards = [store.find("shards", stage.name, key) for key in spec.shard_keys]
    manifests = [shard.manifest for shard in shards if shard is not None]
    if len(manifests) != len(shards):
        raise StageFailed("a finished shard was removed from the store meanwhile", retryable=True)
    metrics = sum_metrics([manifest.metrics for manifest in manifests])
    if stage.check:
        stage.check(*stage.read_config(spec.config), metrics)
    records = [ShardRecord(key=manifest.key, digest=manifest.digest) for manifest in manifests]
    whole = digest([record.digest for record in records])
    manifest = watch.manifest(
        spec, stage, spec.key, metrics, digest=whole, ingredients=spec.ingredients, shards=records
    )
    store.publish("artifacts", manifest, store.building(stage.name, spec.key))
    return built
