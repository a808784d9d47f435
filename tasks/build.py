"""How a stage is built: one supervised child process, or this process for debugging.

The child (`python -m tasks.child SPEC`) calls the stage's function, for each shard that is
missing if it is a map stage, and publishes what it wrote. A killed build goes on from the
shards that it had.
"""

import asyncio
import concurrent.futures
import errno
import json
import multiprocessing
import os
import platform
import resource
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks import process
from tasks.errors import InputError, StageFailed
from tasks.machine import Machine
from tasks.progress import Progress, progress, read_progress, report_to
from tasks.secrets import redact
from tasks.stage import Artifact, Known, Metrics, Node, Resolved, Shard, Stage, load_stage, resolve
from tasks.store.code import code_digests
from tasks.store.keys import canonical, digest
from tasks.store.manifest import OUT, Manifest, ShardRecord
from tasks.store.sources import SourceDigests
from tasks.store.store import BrokenArtifact, Store, Stored

_SMALL_BYTES, _POOL_SECONDS = 4_000_000, 4.0
_LOCK_POLL_SECONDS = 0.2


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: Path
    shards: tuple[Path, ...] = ()

    def artifact(self) -> Artifact:
        return Artifact(self.path, self.shards)


class _Spec(BaseModel):
    """What a build needs to know, on its way to the child."""

    model_config = ConfigDict(extra="forbid")
    store: Path
    stage: str
    config: dict[str, Any]
    key: str
    ingredients: dict[str, Any]
    inputs: dict[str, _Input]
    shard_keys: tuple[str, ...] | None
    machine: dict[str, Any]
    first_shards: int | None = None
    only_shard: int | None = None
    force: bool = False


class _ShardJob(BaseModel):
    """One shard to build, on its way to a worker."""

    model_config = ConfigDict(extra="forbid")
    spec: _Spec
    position: int


@dataclass(frozen=True)
class Outcome:
    """A finished stage: its result, and how much of it had to be built."""

    stored: Stored
    resolved: Resolved
    cached: bool
    shards_built: int = 0
    shards_reused: int = 0
    seconds: float = 0.0


def host() -> dict[str, Any]:
    """The computer, for the record."""
    return {
        "name": socket.gethostname(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def _usage() -> tuple[float, int]:
    """CPU seconds of this process and its finished children, and the peak memory of the largest, in bytes."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    unit = 1 if sys.platform == "darwin" else 1024
    return cpu, max(own.ru_maxrss, children.ru_maxrss) * unit


def _manifest(spec: _Spec, key: str, started: float, cpu: float, metrics: Metrics, **fields: Any) -> Manifest:
    cpu_now, peak = _usage()
    return Manifest(
        stage=load_stage(spec.stage).name,
        key=key,
        metrics=metrics,
        seconds=round(time.perf_counter() - started, 3),
        cpu_seconds=round(cpu_now - cpu, 3),
        peak_memory_bytes=peak,
        machine=spec.machine,
        host=host(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **fields,
    )


def _call(stage: Stage, spec: _Spec, store: Store, key: str, inputs: dict[str, Any], out: Path) -> Metrics:
    extras: dict[str, Any] = {"out": out}
    if "machine" in stage.extras:
        extras["machine"] = Machine.model_validate(spec.machine)
    if "work" in stage.extras:
        extras["work"] = store.work(stage.name, key)
        extras["work"].mkdir(mode=0o700, parents=True, exist_ok=True)
    result = stage.fn(stage.config_type.model_validate(spec.config), **inputs, **extras)
    if isinstance(result, list):
        result = drain(result)
    return result


def drain(steps: list[Any]) -> Metrics:
    """Run datatrove steps as rank 0 of 1; returns the merged `metrics` of the steps that have any."""
    data = None
    for step in steps:
        data = step(data, 0, 1)
    if data is not None:
        deque(data, maxlen=0)
    metrics: Metrics = {}
    for step in steps:
        metrics.update(getattr(step, "metrics", {}))
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


def _check_code(stage: Stage, spec: _Spec) -> None:
    """Refuse to build under a key that was made from other code than what this process runs."""
    if code_digests(stage.fn.__module__) != spec.ingredients["code"]:
        raise StageFailed("its code was edited after the run began: run the same command again")


def _check_source(stage: Stage, spec: _Spec) -> None:
    """Refuse to publish what was read while the source changed: the key speaks of what was there before."""
    if stage.fingerprint:
        config = stage.config_type.model_validate(spec.config)
        if canonical(stage.fingerprint(config, SourceDigests(rehash=True))) != spec.ingredients["source"]:
            raise StageFailed("its source changed while it was read: run the same command again", retryable=True)


def _build_shard(job: _ShardJob) -> bool:
    """Build one shard unless it is there; returns whether it was built."""
    spec, store = job.spec, Store(job.spec.store)
    stage = load_stage(spec.stage)
    assert spec.shard_keys is not None
    key = spec.shard_keys[job.position]
    with store.lock(stage.name, key):
        if not spec.force and store.find_whole("shards", stage.name, key):
            return False
        building = store.start_building(stage.name, key)
        started, cpu = time.perf_counter(), _usage()[0]
        inputs: dict[str, Any] = {name: Shard(spec.inputs[name].shards[job.position]) for name in stage.shard_inputs}
        inputs |= {name: spec.inputs[name].artifact() for name in stage.artifact_inputs}
        metrics = _call(stage, spec, store, key, inputs, building / OUT)
        _check_code(stage, spec)
        manifest = _manifest(spec, key, started, cpu, metrics, digest="", ingredients={})
        store.publish("shards", manifest, building)
        return True


def _initialize_worker(parent: int) -> None:
    process.die_with_parent(parent)


def _is_small(spec: _Spec, stage: Stage, position: int) -> bool:
    folders = [spec.inputs[name].shards[position] for name in stage.shard_inputs]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()) < _SMALL_BYTES


def _build_shards(spec: _Spec, stage: Stage, positions: list[int]) -> int:
    """Build the shards at `positions`, in a pool if there are workers for it; returns how many were built.

    Small shards are built here for the first seconds, which a pool of workers needs for its imports.
    """
    assert spec.shard_keys is not None
    total, built = len(spec.shard_keys), 0
    finished = total - len(positions)
    progress(finished, total, "shards")
    workers = 1 if process.in_process else min(len(positions), Machine.model_validate(spec.machine).n_workers)
    deadline = time.perf_counter() + _POOL_SECONDS
    while workers > 1 and positions and time.perf_counter() < deadline and _is_small(spec, stage, positions[0]):
        built += _build_shard(_ShardJob(spec=spec, position=positions[0]))
        positions, finished = positions[1:], finished + 1
        progress(finished, total, "shards")
    with ExitStack() as stack:
        if workers <= 1 or len(positions) <= 1:
            results = (_build_shard(_ShardJob(spec=spec, position=position)) for position in positions)
        else:
            pool = concurrent.futures.ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=_initialize_worker, initargs=(os.getpid(),)
            )
            stack.callback(pool.shutdown, cancel_futures=True)
            jobs = [pool.submit(_build_shard, _ShardJob(spec=spec, position=position)) for position in positions]
            results = (job.result() for job in concurrent.futures.as_completed(jobs))
        for was_built in results:
            built += was_built
            finished += 1
            progress(finished, total, "shards")
    return built


def _build_map(spec: _Spec, stage: Stage, store: Store, started: float, cpu: float) -> int:
    """Build the missing shards and publish the list of all; returns how many were built."""
    assert spec.shard_keys is not None
    first_with_key = {key: position for position, key in reversed(list(enumerate(spec.shard_keys)))}
    missing = [
        position
        for key, position in sorted(first_with_key.items(), key=lambda item: item[1])
        if spec.force or not store.find_whole("shards", stage.name, key)
    ]
    if spec.only_shard is not None:
        return _build_shards(spec, stage, [spec.only_shard])
    built = _build_shards(spec, stage, missing[: spec.first_shards])
    if spec.first_shards is not None:
        return built
    shards = [store.find("shards", stage.name, key) for key in spec.shard_keys]
    found = [shard.manifest for shard in shards if shard is not None]
    if len(found) != len(shards):
        raise StageFailed("a finished shard was removed from the store meanwhile", retryable=True)
    metrics = sum_metrics([manifest.metrics for manifest in found])
    if stage.check:
        stage.check(stage.config_type.model_validate(spec.config), metrics)
    records = [ShardRecord(key=manifest.key, digest=manifest.digest) for manifest in found]
    manifest = _manifest(
        spec, spec.key, started, cpu, metrics,
        digest=digest([record.digest for record in records]), ingredients=spec.ingredients, shards=records,
    )  # fmt: skip
    store.publish("artifacts", manifest, store.building(stage.name, spec.key))
    return built


def build_spec(spec: _Spec) -> int:
    """Build and publish what `spec` says, in this process; returns the number of shards built."""
    stage, store = load_stage(spec.stage), Store(spec.store)
    _check_code(stage, spec)
    started, cpu = time.perf_counter(), _usage()[0]
    if stage.mapped:
        return _build_map(spec, stage, store, started, cpu)
    building = store.building(stage.name, spec.key)
    inputs = {name: spec.inputs[name].artifact() for name in stage.artifact_inputs}
    metrics = _call(stage, spec, store, spec.key, inputs, building / OUT)
    _check_source(stage, spec)
    manifest = _manifest(spec, spec.key, started, cpu, metrics, digest="", ingredients=spec.ingredients)
    store.publish("artifacts", manifest, building)
    return 0


def _is_retryable(error: BaseException) -> bool:
    if isinstance(error, StageFailed):
        return error.retryable
    lasting = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
    if isinstance(error, lasting) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return False
    return isinstance(error, OSError | MemoryError | BrokenProcessPool)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or 'the store'}): free space and run the same command again"
    if isinstance(error, BrokenProcessPool):
        return "a worker process was killed, perhaps for want of memory: lower machine.workers"
    return str(error) if isinstance(error, StageFailed | InputError) else f"{type(error).__name__}: {error}"


def main(spec_path: Path) -> int:
    """The child: build, and say how it ended in result.json beside the spec."""
    process.adopt()
    process.exit_on_sigterm()
    folder = spec_path.parent
    spec = _Spec.model_validate_json(spec_path.read_bytes())
    report_to(folder / "progress.json")
    result: dict[str, Any]
    try:
        result = {"built": build_spec(spec)}
    except Exception as error:
        traceback.print_exc()
        kind = "input" if isinstance(error, InputError) else "stage"
        result = {"error": redact(_sentence(error)), "kind": kind, "retryable": _is_retryable(error)}
    target = store_result_path(Store(spec.store), spec)
    target.write_text(json.dumps(result))
    return 1 if "error" in result else 0


def store_result_path(store: Store, spec: _Spec) -> Path:
    """Where a child leaves its result: beside the folders that publishing moves away."""
    return store.root / "building" / f"{load_stage(spec.stage).name}-{spec.key}.result.json"


def _prepare(node: Node, inputs: dict[str, Stored], resolved: Resolved, store: Store, machine: Machine) -> _Spec:
    assert resolved.key is not None
    assert node.config is not None
    return _Spec(
        store=store.root,
        stage=node.stage.reference,
        config=node.config.model_dump(mode="json"),
        key=resolved.key,
        ingredients=resolved.ingredients,
        inputs={name: _Input(path=stored.out, shards=stored.shard_paths) for name, stored in inputs.items()},
        shard_keys=resolved.shard_keys,  # type: ignore[arg-type]
        machine=machine.model_dump(mode="json"),
    )


def _outcome(stored: Stored, resolved: Resolved, *, cached: bool, built: int, started: float) -> Outcome:
    n_shards = len(resolved.shard_keys or ())
    return Outcome(stored, resolved, cached, built, n_shards - built, time.perf_counter() - started)


def look_up(node: Node, inputs: dict[str, Stored], store: Store, sources: SourceDigests) -> tuple[Resolved, Stored | None]:
    """The keys of a node on finished inputs, and its result if that is in the store and whole.

    Raises:
        InputError: if the node stands for a given result, and that is not in the store.
    """
    if node.given is not None:
        stored = store.find_whole("artifacts", node.stage.name, node.given)
        if stored is None:
            raise InputError(
                f"{node.name}: the result {node.given[:12]} of {node.stage.name} is not in the store any more: "
                "run the recipe that made it again"
            )
        shards = stored.manifest.shards
        keys = None if shards is None else tuple(shard.key for shard in shards)
        return Resolved(stored.manifest.ingredients, node.given, keys), stored
    resolved = resolve(node, {name: Known.of(stored) for name, stored in inputs.items()}, sources)
    assert resolved.key is not None
    return resolved, store.find_whole("artifacts", node.stage.name, resolved.key)


def build_here(
    node: Node, inputs: dict[str, Stored], store: Store, machine: Machine, sources: SourceDigests,
    *, first_shards: int | None = None, shard: int | None = None, force: bool = False,
) -> Outcome | None:  # fmt: skip
    """Build a node in this process, without children: for a debugger.

    Args:
        first_shards: build this many of the missing shards and publish no whole; returns None.
        shard: build the shard at this position, counted from 0, and publish no whole; returns None.
        force: build it although it is there.
    """
    started, stage = time.perf_counter(), node.stage
    resolved, stored = look_up(node, inputs, store, sources)
    assert resolved.key is not None
    in_part = first_shards is not None or shard is not None
    if node.given is not None or (stored and not force and not in_part):
        assert stored is not None
        return _outcome(stored, resolved, cached=True, built=0, started=started)
    if in_part and not stage.mapped:
        raise InputError(f"{stage.name} is not built shard by shard: leave --sample and --shard out")
    n_shards = len(resolved.shard_keys or ())
    if shard is not None and shard >= n_shards:
        raise InputError(f"--shard {shard}: {node.name} has {n_shards} shards, 0 to {n_shards - 1}")
    spec = _prepare(node, inputs, resolved, store, machine)
    spec.first_shards, spec.only_shard, spec.force = first_shards, shard, force
    process.in_process = True
    with store.lock(stage.name, resolved.key):
        store.start_building(stage.name, resolved.key)
        built = build_spec(spec)
    found = None if in_part else store.find("artifacts", stage.name, resolved.key)
    return _outcome(found, resolved, cached=False, built=built, started=started) if found else None


@asynccontextmanager
async def _locked(store: Store, stage: str, key: str) -> AsyncIterator[None]:
    while True:
        with store.lock(stage, key, wait=False) as held:
            if held:
                yield
                return
        await asyncio.sleep(_LOCK_POLL_SECONDS)


async def build(
    node: Node, inputs: dict[str, Stored], store: Store, machine: Machine, sources: SourceDigests,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:  # fmt: skip
    """The result of a node on these inputs, from the store or built in a child process.

    Raises:
        InputError: if the recipe or the data make it impossible.
        StageFailed: if the child failed.
    """
    started, stage = time.perf_counter(), node.stage
    resolved, stored = look_up(node, inputs, store, sources)
    assert resolved.key is not None
    if stored:
        return _outcome(stored, resolved, cached=True, built=0, started=started)
    async with _locked(store, stage.name, resolved.key):
        stored = store.find_whole("artifacts", stage.name, resolved.key)
        if stored:
            return _outcome(stored, resolved, cached=True, built=0, started=started)
        spec = _prepare(node, inputs, resolved, store, machine)
        result_path = store_result_path(store, spec)
        building = store.start_building(stage.name, resolved.key)
        result_path.unlink(missing_ok=True)
        (building / "spec.json").write_text(spec.model_dump_json(indent=1))
        log = building / "log.txt"

        def poll() -> None:
            found = read_progress(building / "progress.json")
            if found:
                on_progress(found)

        status = await process.run_child([sys.executable, "-m", "tasks.child", str(building / "spec.json")], log, poll)
        try:
            result = json.loads(result_path.read_text())
        except (OSError, ValueError):
            result = {
                "error": f"its process ended with {f'signal {-status}' if status < 0 else f'status {status}'} before it was done",
                "kind": "stage",
                "retryable": status < 0,
            }
        result_path.unlink(missing_ok=True)
        if "error" in result:
            if result["kind"] == "input":
                raise InputError(f"{node.name}: {result['error']}")
            raise StageFailed(
                f"{node.name}: {result['error']}", retryable=result["retryable"], log=_tail(log), log_path=str(log)
            )
    try:
        found = store.find("artifacts", stage.name, resolved.key)
    except BrokenArtifact as error:
        raise StageFailed(f"{node.name}: what was just built is broken: {error}", retryable=True) from error
    assert found is not None
    return _outcome(found, resolved, cached=False, built=result["built"], started=started)


def _tail(log: Path, lines: int = 30) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
