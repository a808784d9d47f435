"""A job of a map stage: the shards at some positions, built from one spec file by whatever process has it."""

from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.errors import StageFailed
from tasks.engine.call import Stopwatch, call
from tasks.engine.manifest import OUT
from tasks.engine.spec import Spec
from tasks.engine.stage import Piece, Shard, load_stage
from tasks.engine.store import ATTEMPT, Store


def build_shard(spec: Spec, position: int, folder: Path | None = None) -> bool:
    """Build one shard unless it is there; returns whether it was built.

    Args:
        folder: where it is built, by this process alone; if None, where the key says, under its lock. Two that build a
            shard at once in folders of their own publish equal bytes, and the first stays.
    """
    store, stage = Store(spec.store), load_stage(spec.stage)
    assert spec.shard_keys is not None
    key = spec.shard_keys[position]
    with store.lock(stage.name, key) if folder is None else nullcontext():
        if not spec.force and store.find_whole("shards", stage.name, key):
            return False
        watch = Stopwatch.start()
        building = store.start_building(stage.name, key) if folder is None else folder
        (building / OUT).mkdir(parents=True, exist_ok=True)
        mark = building / ATTEMPT
        mark.touch()
        for name in stage.shard_inputs:
            store.check_input(spec.inputs[name].shards[position])
        inputs: dict[str, Any] = {
            name: Shard(spec.inputs[name].shards[position]) for name in stage.shard_inputs
        }
        inputs |= {
            name: spec.inputs[name].artifact() for name in stage.artifact_inputs if name in spec.inputs
        }
        if spec.pieces is not None:
            inputs["piece"] = Piece(spec.pieces[position])
        metrics = call(stage, spec, store, key, inputs, building / OUT)
        # A collection may have removed the folder of a worker whose driver is long gone; what was written since is not all.
        if not mark.exists():
            raise StageFailed("the folder that it was built in was removed meanwhile", retryable=True)
        store.publish(
            "shards", watch.manifest(spec, stage, key, metrics, digest="", ingredients={}), building
        )
        return True


@lru_cache(maxsize=1)
def _read_spec(path: Path, changed_ns: int) -> Spec:
    return Spec.model_validate_json(path.read_bytes())


def read_spec(path: Path) -> Spec:
    """What a spec file says; read again only if it is another one."""
    return _read_spec(path, path.stat().st_mtime_ns)


def build_shard_of(spec_path: Path, position: int) -> bool:
    """Build one shard of a spec file, which a worker reads once, unless it is there; returns whether it was built."""
    return build_shard(read_spec(spec_path), position)
