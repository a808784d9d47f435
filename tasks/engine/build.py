"""How a node gets its result: from the store, from one supervised child process, or here for debugging."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError, StageFailed
from tasks.engine import child, process
from tasks.engine.code import check_bytecode
from tasks.engine.machine import Machine
from tasks.engine.progress import Progress, read_progress
from tasks.engine.resolve import Known, Resolved, resolve
from tasks.engine.sources import SourceDigests
from tasks.engine.spec import Input, Spec
from tasks.engine.stage import Node
from tasks.engine.store import BrokenArtifact, Store, Stored

_LOCK_POLL_SECONDS = 0.2
LOG = "log.txt"


@dataclass(frozen=True)
class Outcome:
    """A finished stage: its result, and how much of it had to be built."""

    stored: Stored
    resolved: Resolved
    cached: bool
    shards_built: int = 0
    shards_reused: int = 0
    seconds: float = 0.0


def _outcome(stored: Stored, resolved: Resolved, *, cached: bool, built: int, started: float) -> Outcome:
    n_shards = len(resolved.shard_keys or ())
    return Outcome(stored, resolved, cached, built, n_shards - built, time.perf_counter() - started)


def look_up(
    node: Node, inputs: dict[str, Stored], store: Store, sources: SourceDigests
) -> tuple[Resolved, str, Stored | None]:
    """What a node is made of on finished inputs, its key, and its result if that is in the store and whole.

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
        return Resolved(stored.manifest.ingredients, node.given, keys), node.given, stored
    resolved = resolve(node, {name: Known.of(stored) for name, stored in inputs.items()}, sources)
    assert resolved.key is not None, "finished inputs have digests"
    return resolved, resolved.key, store.find_whole("artifacts", node.stage.name, resolved.key)


def _spec(
    node: Node, inputs: dict[str, Stored], resolved: Resolved, key: str, store: Store, machine: Machine
) -> Spec:
    return Spec(
        store=store.root,
        stage=node.stage.reference,
        config=node.config.model_dump(mode="json") if node.config else None,
        key=key,
        ingredients=resolved.ingredients,
        inputs={name: Input(path=stored.out, shards=stored.shard_paths) for name, stored in inputs.items()},
        shard_keys=resolved.shard_keys,
        pieces=resolved.pieces,
        machine=machine,
    )


def build_here(
    node: Node,
    inputs: dict[str, Stored],
    store: Store,
    machine: Machine,
    sources: SourceDigests,
    *,
    first_shards: int | None = None,
    shard: int | None = None,
    force: bool = False,
) -> Outcome | None:
    """Build a node in this process, without children: for a debugger.

    Args:
        first_shards: build this many of the missing shards and publish no whole; returns None.
        shard: build the shard at this position, counted from 0, and publish no whole; returns None.
        force: build it although it is there.
    """
    started, stage = time.perf_counter(), node.stage
    resolved, key, stored = look_up(node, inputs, store, sources)
    in_part = first_shards is not None or shard is not None
    if stored and (node.given is not None or not (force or in_part)):
        return _outcome(stored, resolved, cached=True, built=0, started=started)
    if in_part and not stage.mapped:
        raise InputError(f"{stage.name} is not built shard by shard: leave --sample and --shard out")
    n_shards = len(resolved.shard_keys or ())
    if shard is not None and shard >= n_shards:
        raise InputError(f"--shard {shard}: {node.name} has {n_shards} shards, 0 to {n_shards - 1}")
    spec = _spec(node, inputs, resolved, key, store, machine.model_copy(update={"in_process": True}))
    spec.first_shards, spec.only_shard, spec.force = first_shards, shard, force
    with store.lock(stage.name, key):
        built = child.build_spec(spec, store.start_building(stage.name, key))
    whole = None if in_part else store.find("artifacts", stage.name, key)
    return _outcome(whole, resolved, cached=False, built=built, started=started) if whole else None


@asynccontextmanager
async def _locked(store: Store, stage: str, key: str, *, leased: bool) -> AsyncIterator[None]:
    while True:
        with store.lock(stage, key, wait=False, leased=leased) as held:
            if held:
                yield
                return
        await asyncio.sleep(_LOCK_POLL_SECONDS)


async def build(
    node: Node,
    inputs: dict[str, Stored],
    store: Store,
    machine: Machine,
    sources: SourceDigests,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """The result of a node on these inputs, from the store or built in a child process.

    Raises:
        InputError: if the recipe or the data make it impossible.
        StageFailed: if the child failed.
    """
    started, stage = time.perf_counter(), node.stage
    resolved, key, stored = look_up(node, inputs, store, sources)
    if stored:
        return _outcome(stored, resolved, cached=True, built=0, started=started)
    async with _locked(store, stage.name, key, leased=machine.is_shared):
        # Another process may have built it while this one waited.
        stored = store.find_whole("artifacts", stage.name, key)
        if stored:
            return _outcome(stored, resolved, cached=True, built=0, started=started)
        built = await _build_in_child(
            _spec(node, inputs, resolved, key, store, machine), node, store, on_progress
        )
    try:
        whole = store.find("artifacts", stage.name, key)
    except BrokenArtifact as error:
        raise StageFailed(f"{node.name}: what was just built is broken: {error}", retryable=True) from error
    assert whole is not None
    return _outcome(whole, resolved, cached=False, built=built, started=started)


async def _build_in_child(
    spec: Spec, node: Node, store: Store, on_progress: Callable[[Progress], None]
) -> int:
    """Build under the lock of the key; returns the number of shards built."""
    building = store.start_building(node.stage.name, spec.key)
    check_bytecode(spec.ingredients["code"])
    spec_path, log = building / "spec.json", building / LOG
    spec_path.write_text(spec.model_dump_json(indent=1))

    def poll() -> None:
        progress = read_progress(building / child.PROGRESS)
        if progress:
            on_progress(progress)

    arguments = [sys.executable, "-m", child.__name__, str(spec_path)]
    result = _read_report(*await process.run_child(arguments, log, poll))
    if "error" not in result:
        return result["built"]
    sentence = f"{node.name}: {result['error']}"
    if result["kind"] == "input":
        raise InputError(sentence)
    raise StageFailed(sentence, retryable=result["retryable"], log=tail(log), log_path=str(log))


def _read_report(status: int, report: str) -> dict[str, Any]:
    """How a child says that it ended, or what its end says of it."""
    if report:
        return json.loads(report)
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return {
        "error": f"its process ended with {how} before it was done",
        "kind": "stage",
        "retryable": status < 0,
    }


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of what a child printed; nothing if the file is not there."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
