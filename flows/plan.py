"""plan: what a run would do and why, read from the graph and the store; builds nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.config import flops_per_token
from tasks.build import look_up
from tasks.errors import NotKnownYet
from tasks.machine import available_cores
from tasks.stage import UNKNOWN, Known, Node, Resolved, resolve
from tasks.store.keys import digest
from tasks.store.sources import SourceDigests
from tasks.store.store import BrokenArtifact, Store, Stored
from tasks.train_model import TrainModelConfig

CACHED, RUN, DEPENDS = "cached", "run", "depends"


@dataclass(frozen=True)
class Planned:
    """What would happen to one stage."""

    stage: str
    state: str
    reason: str
    shards_ready: int | None = None
    shards: int | None = None
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The form of `plan --json`."""
        row: dict[str, Any] = {"stage": self.stage, "state": self.state, "reason": self.reason}
        if self.shards is not None:
            row["shards"] = {"ready": self.shards_ready, "all": self.shards}
        if self.seconds is not None:
            row["seconds"] = round(self.seconds, 1)
        return row


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}[{i}]")
    else:
        yield path, value


def changed_values(old: Any, new: Any, path: str) -> list[tuple[str, Any, Any]]:
    """Path, old and new value of each leaf that differs between two values in JSON types."""
    before, after = dict(_leaves(old, path)), dict(_leaves(new, path))
    names = sorted(before.keys() | after.keys())
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def explain_change(old: dict[str, Any] | None, new: dict[str, Any]) -> str:
    """Why ingredients `new` have no result although `old` had: which config, code, library, source or input changed."""
    if old is None:
        return "no result yet"
    reasons = []
    for name, before, after in changed_values(old["config"], new["config"], new["stage"])[:3]:
        field = name.replace("train_model.train.", "train_model.").replace("train_model.model.", "model.")
        reasons.append(f"config {field} from {before!r} to {after!r}")
    modules = sorted(name for name, _, _ in changed_values(old["code"], new["code"], ""))
    if modules:
        reasons.append(f"code of {', '.join(name.removeprefix('.') for name in modules[:3])}")
    for name, before, after in changed_values(old["libraries"], new["libraries"], ""):
        reasons.append(f"library {name.removeprefix('.')} from {before} to {after}")
    if old.get("source") != new.get("source"):
        reasons.append(f"source: {_source_change(old.get('source'), new.get('source'))}")
    for name, before, after in changed_values(old["inputs"], new["inputs"], ""):
        if before and after:
            reasons.append(f"input {name.removeprefix('.')}")
    return "; ".join(reasons) or "its result is not in the store any more"


def _source_change(old: Any, new: Any) -> str:
    """What changed among files, each [path, size, SHA-256]."""

    def files(value: Any) -> dict[str, Any]:
        if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
            return {value[0]: value[1:]}
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return {name: stamp for child in children for name, stamp in files(child).items()}

    before, after = files(old), files(new)
    counts = {
        "added": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
        "changed": sum(before[name] != after[name] for name in before.keys() & after.keys()),
    }
    return ", ".join(f"{count} files {what}" for what, count in counts.items() if count) or "it changed"


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
        name, stage = node.name, node.stage.name
        if node.given is not None:
            _, stored = look_up(node, {}, store, sources)
            assert stored is not None
            known[node] = Known.of(stored)
            rows.append(Planned(name, CACHED, ""))
            continue
        inputs = {input_name: known[upstream] for input_name, upstream in node.inputs.items()}
        try:
            resolved = resolve(node, inputs, sources)
        except NotKnownYet as unknown:
            known[node] = UNKNOWN
            rows.append(Planned(name, RUN, str(unknown)))
            continue
        digests = _shard_digests(stage, resolved, store)
        ready = sum(shard is not None for shard in digests or ()) if resolved.shard_keys is not None else None
        total = len(resolved.shard_keys) if resolved.shard_keys is not None else None
        if resolved.key is None:
            waiting = sorted({upstream.name for upstream in node.inputs.values() if known[upstream].digest is None})
            reason = f"on {', '.join(waiting)}" + (f"; {ready} of {total} shards are ready" if ready else "")
            known[node] = Known(None, digests)
            rows.append(Planned(name, DEPENDS, reason, ready, total, _predict(node, previous, store, 0, total)))
            continue
        try:
            found, fault = store.find("artifacts", stage, resolved.key), None
        except BrokenArtifact as error:
            found, fault = None, str(error)
        if found:
            known[node] = Known.of(found)
            rows.append(Planned(name, CACHED, "", ready, total))
            continue
        reason = f"artifact broken: {fault}" if fault else explain_change(_ingredients(previous, name), resolved.ingredients)
        if ready:
            reason += f"; {ready} of {total} shards are ready"
        checkpoints = sorted(store.work(stage, resolved.key).glob("step-*"))
        if checkpoints:
            reason += f"; goes on from step {int(checkpoints[-1].name.removeprefix('step-'))}"
        known[node] = UNKNOWN
        if digests is not None:
            complete = [shard for shard in digests if shard is not None]
            known[node] = Known(digest(complete) if len(complete) == len(digests) else None, digests)
        rows.append(Planned(name, RUN, reason, ready, total, _predict(node, previous, store, ready, total)))
    return rows


def _ingredients(previous: dict[str, Any], stage: str) -> dict[str, Any] | None:
    return previous[stage]["ingredients"] if stage in previous else None


def _predict(node: Node, previous: dict[str, Any], store: Store, ready: int | None, total: int | None) -> float | None:
    """Seconds that a stage will take, from what its last result took; None if there is none.

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
        return manifest.seconds - metrics["step_seconds"] + flops / metrics["flops_per_second"]
    if total:
        return _shard_seconds(last, store) * (total - (ready or 0)) / total
    return manifest.seconds


def _shard_seconds(stored: Stored, store: Store) -> float:
    """Seconds that all shards of a result took when they were built, side by side as its workers were."""
    shards = (store.find_whole("shards", stored.manifest.stage, shard.key) for shard in stored.manifest.shards or ())
    together = sum(shard.manifest.seconds for shard in shards if shard)
    return max(stored.manifest.seconds, together / max(1, stored.manifest.machine.get("workers") or available_cores()))


def _shard_digests(stage: str, resolved: Resolved, store: Store) -> tuple[str | None, ...] | None:
    if resolved.shard_keys is None:
        return None
    found = (store.find_whole("shards", stage, key) if key else None for key in resolved.shard_keys)
    return tuple(shard.manifest.digest if shard else None for shard in found)
