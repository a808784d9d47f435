"""A job of a map stage: the shards at some positions, built from one spec file by whatever process has it."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.engine.call import Stopwatch, call
from tasks.engine.manifest import OUT
from tasks.engine.spec import Spec
from tasks.engine.stage import Piece, Shard, load_stage
from tasks.engine.store import Store


def build_shard(spec: Spec, position: int) -> bool:
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
        if spec.pieces is not None:
            inputs["piece"] = Piece(spec.pieces[position])
        metrics = call(stage, spec, store, key, inputs, building / OUT)
        store.publish(
            "shards", watch.manifest(spec, stage, key, metrics, digest="", ingredients={}), building
        )
        return True


@lru_cache(maxsize=1)
def _read_spec(path: Path) -> Spec:
    return Spec.model_validate_json(path.read_bytes())


def build_shard_of(spec_path: Path, position: int) -> bool:
    """Build one shard of a spec file, which a worker reads once, unless it is there; returns whether it was built."""
    return build_shard(_read_spec(spec_path), position)
