"""accept: take an earlier result for a stage although its code or its libraries changed."""

from datetime import UTC, datetime
from typing import Any

from tasks.build import look_up
from tasks.errors import InputError
from tasks.promote_model import user
from tasks.stage import Node
from tasks.store.manifest import Accepted, Manifest, ShardRecord
from tasks.store.sources import SourceDigests
from tasks.store.store import Kind, Store, Stored

_FORGIVEN = ("code", "libraries")


def _earlier(store: Store, stage: str, wanted: dict[str, Any]) -> Stored:
    """The newest result that differs from what is wanted in code and libraries only.

    Raises:
        InputError: if there is none.
    """
    folder = store.root / "artifacts" / stage
    keys = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [stored for key in keys if (stored := store.find_whole("artifacts", stage, key))]
    rest = {name: value for name, value in wanted.items() if name not in _FORGIVEN}
    fitting = [
        stored
        for stored in found
        if {name: value for name, value in stored.manifest.ingredients.items() if name not in _FORGIVEN} == rest
    ]
    if not fitting:
        raise InputError(
            f"--accept {stage}: no earlier result of {stage} has this configuration and these inputs; only changed code and "
            "libraries can be accepted: leave --accept out"
        )
    return max(fitting, key=lambda stored: stored.manifest.created)


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed, such as code of tasks.clean, or library ftfy from 1 to 2."""
    code = sorted(name for name in {**old["code"], **new["code"]} if old["code"].get(name) != new["code"].get(name))
    before, after = old["libraries"], new["libraries"]
    libraries = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
    return [f"code of {name}" for name in code] + [
        f"library {name} from {before.get(name)} to {after.get(name)}" for name in libraries
    ]


def _adopt(store: Store, kind: Kind, stored: Stored, manifest: Manifest) -> None:
    """Publish the files of one result under another key, without copying their content."""
    with store.lock(manifest.stage, manifest.key):
        if store.find_whole(kind, manifest.stage, manifest.key):
            return
        building = store.start_building(manifest.stage, manifest.key)
        for name in stored.manifest.files:
            target = building / "out" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(stored.out / name)
        store.publish(kind, manifest, building)


def accept_earlier(node: Node, inputs: dict[str, Stored], store: Store, sources: SourceDigests) -> None:
    """If a node has no result, take the newest one that differs in code and libraries only; its manifest says so, and by whom.

    Raises:
        InputError: if there is none.
    """
    resolved, stored = look_up(node, inputs, store, sources)
    if stored is not None or resolved.key is None:
        return
    earlier = _earlier(store, node.stage.name, resolved.ingredients)
    accepted = Accepted(
        key=earlier.manifest.key,
        by=user(),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        differences=_changes(earlier.manifest.ingredients, resolved.ingredients),
    )
    shards = None
    if resolved.shard_keys is not None:
        shards = []
        for key, old in zip(resolved.shard_keys, earlier.manifest.shards or (), strict=True):
            assert key is not None
            shard = store.find("shards", node.stage.name, old.key)
            assert shard is not None
            _adopt(store, "shards", shard, shard.manifest.model_copy(update={"key": key, "accepted": accepted}))
            shards.append(ShardRecord(key=key, digest=old.digest))
    changed = {"key": resolved.key, "ingredients": resolved.ingredients, "shards": shards, "accepted": accepted}
    _adopt(store, "artifacts", earlier, earlier.manifest.model_copy(update=changed))
