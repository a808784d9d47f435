"""accept: take an earlier result for a stage although its code or its libraries changed."""

from typing import Any

from flows.runs.champions import user
from flows.runs.changes import changed_code
from flows.runs.record import now
from model.errors import InputError
from tasks.engine.build import look_up
from tasks.engine.manifest import FORMAT_VERSION, Accepted, Manifest
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Node
from tasks.engine.store import Kind, Store, Stored

_FORGIVEN = ("code", "libraries", "python")


def _earlier(store: Store, stage: str, wanted: dict[str, Any]) -> Stored:
    """The newest result that differs from what is wanted in code and libraries only.

    Raises:
        InputError: if there is none.
    """
    folder = store.root / "artifacts" / stage
    keys = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    results = [stored for key in keys if (stored := store.find_whole("artifacts", stage, key))]
    rest = {name: value for name, value in wanted.items() if name not in _FORGIVEN}
    fitting = [
        stored
        for stored in results
        if stored.manifest.format_version == FORMAT_VERSION
        and {name: value for name, value in stored.manifest.ingredients.items() if name not in _FORGIVEN}
        == rest
    ]
    if not fitting:
        raise InputError(
            f"--accept {stage}: no earlier result of {stage} has this configuration and these inputs; only changed code and "
            "libraries can be accepted: leave --accept out"
        )
    return max(fitting, key=lambda stored: stored.manifest.created)


def _adopt(store: Store, kind: Kind, stored: Stored, manifest: Manifest) -> None:
    """Publish the files of one result under another key, without copying their content."""
    with store.lock(manifest.stage, manifest.key):
        if store.find_whole(kind, manifest.stage, manifest.key):
            return
        faults = store.faults(stored)
        if faults:
            store.set_aside(stored.path)
            raise InputError(
                f"--accept {manifest.stage}: the earlier result is damaged, and was set aside ({faults[0]}): leave --accept out"
            )
        building = store.start_building(manifest.stage, manifest.key)
        for name in stored.manifest.files:
            target = building / "out" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(stored.out / name)
        store.publish(kind, manifest, building, is_recorded=True)


def accept_earlier(node: Node, inputs: dict[str, Stored], store: Store, sources: SourceDigests) -> None:
    """If a node has no result, take the newest one that differs in code and libraries only; its manifest says so, and by whom.

    Raises:
        InputError: if there is none.
    """
    resolved, wanted_key, stored = look_up(node, inputs, store, sources)
    if stored is not None:
        return
    earlier = _earlier(store, node.stage.name, resolved.ingredients)
    modules, libraries = changed_code(earlier.manifest.ingredients, resolved.ingredients)
    accepted = Accepted(
        key=earlier.manifest.key,
        by=user(),
        at=now(),
        differences=[*(f"code of {name}" for name in modules), *libraries],
    )
    shards = None
    if resolved.shard_keys is not None:
        shards = []
        for key, old in zip(resolved.shard_keys, earlier.manifest.shards or (), strict=True):
            assert key is not None
            shard = store.find("shards", node.stage.name, old.key)
            assert shard is not None
            _adopt(
                store, "shards", shard, shard.manifest.model_copy(update={"key": key, "accepted": accepted})
            )
            shards.append(old.model_copy(update={"key": key}))
    changed = {"key": wanted_key, "ingredients": resolved.ingredients, "shards": shards, "accepted": accepted}
    _adopt(store, "artifacts", earlier, earlier.manifest.model_copy(update=changed))


def check_accept(accept: frozenset[str], nodes: list[Node]) -> None:
    """Refuse names that are no stages of a graph.

    Raises:
        InputError: naming the first of them.
    """
    names = [node.name for node in nodes]
    for name in sorted(accept - set(names)):
        raise InputError(f"--accept {name}: there is no such stage: stages are {', '.join(names)}")
