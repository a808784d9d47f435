"""plan: what a run would do and why, read from the graph and the store; builds nothing."""

from dataclasses import dataclass, field
from typing import Any

from flows.runs.changes import explain_change
from model.config import flops_per_token
from model.errors import NotKnownYet
from model.machine import available_cores
from tasks.engine.build import look_up
from tasks.engine.keys import canonical, digest
from tasks.engine.manifest import Manifest
from tasks.engine.resolve import UNKNOWN, Known, Resolved, resolve
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Node
from tasks.engine.store import BrokenArtifact, Store, Stored
from tasks.tables import read_json_lines
from tasks.text.document_shards import PIECES
from tasks.text.pieces import stamps_of
from tasks.training.settings import TrainModelConfig

CACHED, RUN, DEPENDS = "cached", "run", "depends"


@dataclass(frozen=True)
class Planned:
    """What would happen to one stage.

    Attributes:
        seconds: that it will take, as far as an earlier run of the recipe tells.
        metrics: figures of its result, if it is cached.
    """

    stage: str
    state: str
    reason: str
    shards_ready: int | None = None
    shards: int | None = None
    seconds: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict, repr=False)

    def as_json(self) -> dict[str, Any]:
        """The form of `plan --json`."""
        row: dict[str, Any] = {"stage": self.stage, "state": self.state, "reason": self.reason}
        if self.shards is not None:
            row["shards"] = {"ready": self.shards_ready, "all": self.shards}
        if self.seconds is not None:
            row["seconds"] = round(self.seconds, 1)
        return row


def plan(nodes: list[Node], store: Store, sources: SourceDigests, previous: dict[str, Any]) -> list[Planned]:
    """What a run of these nodes would do, stage by stage.

    Args:
        nodes: the graph, each node after its inputs.
        previous: what run.json says of each stage in the last run of the recipe, for reasons and costs.

    Raises:
        InputError: if a source is missing or a benchmark does not exist.
    """
    known: dict[Node, Known] = {}
    rows: list[Planned] = []
    for node in nodes:
        row, known[node] = _plan_node(node, known, store, sources, previous)
        rows.append(row)
    return rows


def _plan_node(
    node: Node, known: dict[Node, Known], store: Store, sources: SourceDigests, previous: dict[str, Any]
) -> tuple[Planned, Known]:
    """The row of one node, and what its successors can know of its result."""
    name = node.name
    if node.given is not None:
        _, _, stored = look_up(node, {}, store, sources)
        assert stored is not None
        return Planned(name, CACHED, "", metrics=stored.manifest.metrics), Known.of(stored)
    inputs = {input_name: known[upstream] for input_name, upstream in node.inputs.items()}
    try:
        resolved = resolve(node, inputs, sources)
    except NotKnownYet as unknown:
        return Planned(name, RUN, str(unknown)), UNKNOWN

    stored, fault = None, None
    if resolved.key is not None:
        try:
            stored = store.find("artifacts", node.stage.name, resolved.key)
        except BrokenArtifact as error:
            fault = str(error)
    if stored:
        count = None if stored.manifest.shards is None else len(stored.manifest.shards)
        return Planned(name, CACHED, "", count, count, metrics=stored.manifest.metrics), Known.of(stored)

    # Shards that are there are there, whatever becomes of the whole.
    built = _built_shards(node.stage.name, resolved, store)
    digests = _digests_of_shards(node, built)
    ready = None if built is None else sum(shard is not None for shard in built)
    total = None if built is None else len(built)
    shards = f"; {ready} of {total} {'pieces' if resolved.pieces else 'shards'} are ready" if ready else ""
    if resolved.key is None:
        waiting = sorted(
            {upstream.name for upstream in node.inputs.values() if known[upstream].digest is None}
        )
        seconds = _predict(node, previous, store, 0, total)
        return Planned(name, DEPENDS, f"on {', '.join(waiting)}{shards}", ready, total, seconds), Known(
            None, digests
        )

    reason = (
        f"artifact broken: {fault}"
        if fault
        else explain_change(
            _ingredients(previous, name), resolved.ingredients, _files(node, previous, resolved, store)
        )
    )
    reason += shards
    checkpoints = sorted(store.work(node.stage.name, resolved.key).glob("step-*"))
    if checkpoints:
        reason += f"; goes on from step {int(checkpoints[-1].name.removeprefix('step-'))}"
    complete = [shard.digest for shard in built or () if shard is not None]
    whole = digest(complete) if built is not None and len(complete) == len(built) else None
    return Planned(name, RUN, reason, ready, total, _predict(node, previous, store, ready, total)), Known(
        whole, digests
    )


def _ingredients(previous: dict[str, Any], stage: str) -> dict[str, Any] | None:
    return previous[stage]["ingredients"] if stage in previous else None


def _predict(
    node: Node, previous: dict[str, Any], store: Store, ready: int | None, total: int | None
) -> float | None:
    """Seconds that a stage will take, from what its last result took; None if there is none, or it was asked for something else.

    Training is scaled by its matrix FLOPs, a map stage by the shards that are missing.
    """
    name = node.name
    last = store.find_whole("artifacts", node.stage.name, previous[name]["key"]) if name in previous else None
    if last is None:
        return None
    manifest, metrics = last.manifest, last.manifest.metrics
    measured = {"vocabulary_size", "step_seconds", "flops_per_second"} <= metrics.keys()
    if isinstance(node.config, TrainModelConfig) and measured:
        train = node.config.train
        tokens = train.n_steps * train.tokens_per_batch
        flops = tokens * flops_per_token(node.config.model, metrics["vocabulary_size"])
        # Of a training that was resumed the seconds are those of its last attempt, and the steps those of all.
        beside_steps = max(0.0, manifest.seconds - metrics["step_seconds"])
        return beside_steps + flops / metrics["flops_per_second"]
    shards = len(manifest.shards or ())
    if total and shards:
        return _shard_seconds(last, store) * (total - (ready or 0)) / shards
    changed = manifest.ingredients.get("config") != canonical(node.config)
    return None if changed and not node.stage.mapped else manifest.seconds


def _shard_seconds(stored: Stored, store: Store) -> float:
    """Seconds that all shards of a result took when they were built, side by side as its workers were."""
    shards = (
        store.find_whole("shards", stored.manifest.stage, shard.key) for shard in stored.manifest.shards or ()
    )
    together = sum(shard.manifest.seconds for shard in shards if shard)
    return max(
        stored.manifest.seconds,
        together / max(1, stored.manifest.machine.get("workers") or available_cores()),
    )


def _built_shards(stage: str, resolved: Resolved, store: Store) -> tuple[Manifest | None, ...] | None:
    """The manifests of the shards that are there; None if nobody knows yet which there will be."""
    if resolved.shard_keys is None:
        return None
    shards = (store.find_whole("shards", stage, key) if key else None for key in resolved.shard_keys)
    return tuple(shard.manifest if shard else None for shard in shards)


def _digests_of_shards(
    node: Node, built: tuple[Manifest | None, ...] | None
) -> tuple[str | None, ...] | None:
    """What successors can know of the shards; nothing while it is open how many a piece gives."""
    if built is None or (node.stage.several and None in built):
        return None
    if node.stage.several:
        return tuple(part for manifest in built if manifest for part in manifest.shard_digests())
    return tuple(manifest.digest if manifest else None for manifest in built)


def files_read(stored: Stored | None) -> dict[str, Any]:
    """What says the content of each file that a result was read from, by source and path."""
    return stamps_of(read_json_lines(stored.out / PIECES)) if stored else {}


def _files(
    node: Node, previous: dict[str, Any], resolved: Resolved, store: Store
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The files that the last run read, and those that are there now; None where that is not known."""
    if resolved.pieces is None or node.name not in previous:
        return None
    last = store.find_whole("artifacts", node.stage.name, previous[node.name]["key"])
    return (files_read(last), stamps_of(list(resolved.pieces))) if last else None
