"""What is in a store, how two of its runs differ, whether it is whole, and what can go."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.runs.champions import champion_names, read_champions
from flows.runs.changes import changed_values, explain_change
from flows.runs.plan import files_read
from flows.runs.record import MEASURING, Run, all_runs, unreadable_runs
from model.errors import InputError
from tasks.engine.manifest import MANIFEST, OUT, read_manifest
from tasks.engine.store import DAMAGED, BrokenArtifact, Kind, Store

KINDS: tuple[Kind, ...] = ("artifacts", "shards")
_COLLECT_SECONDS = 60.0


def folder_bytes(folder: Path) -> int:
    """Size of the files below a folder, in bytes."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _bytes(path: Path) -> int:
    try:
        return folder_bytes(path) if path.is_dir() else path.lstat().st_size
    except FileNotFoundError:
        return 0  # whoever put it there has removed it meanwhile


def diff_runs(first: Run, second: Run, store: Store) -> list[str]:
    """How the second run differs from the first: recipe, machine, and by stage code, inputs, counts and scores."""
    lines = []
    for section in ("recipe", "machine"):
        for name, before, after in changed_values(first.record[section], second.record[section], section):
            lines.append(f"{name}: {before!r} -> {after!r}")
    stages = list(dict.fromkeys([*first.record["stages"], *second.record["stages"]]))
    for stage in stages:
        entries = [run.record["stages"].get(stage) for run in (first, second)]
        if None in entries:
            which = first if entries[1] is None else second
            lines.append(f"{stage}: only in {which.name}")
            continue
        old, new = entries
        if old["key"] == new["key"]:
            continue
        same = ", to the same bytes" if old["digest"] == new["digest"] else ""
        results = [run.stored(store, stage) for run in (first, second)]
        files = (files_read(results[0]), files_read(results[1]))
        change = explain_change(old["ingredients"], new["ingredients"], files if any(files) else None)
        lines.append(f"{stage}: {change}{same}")
        was, now = (stored.manifest.metrics for stored in results)
        lines += [
            f"  {name.lstrip('.')}: {before} -> {after}"
            for name, before, after in changed_values(was, now, "")
        ]
    return lines


def verify_store(store: Store) -> Iterator[str]:
    """Every fault of the store, by full hashes. A result that has one is set aside, so that the next run makes it anew.

    What was built from a result before it was damaged stays: it was compared with its manifest when it was read.
    """
    for kind in reversed(KINDS):  # shards before the lists of them
        for path in sorted((store.root / kind).glob("*/*")):
            try:
                stored = store.find(kind, path.parent.name, path.name)
                faults = store.faults(stored) if stored else []
            except BrokenArtifact as error:
                faults = [f"{path}: {error}"]
            if faults:
                yield from faults
                store.set_aside(path)
    yield from unreadable_runs(store).values()
    for name in champion_names(store):
        try:
            read_champions(store, name)
        except InputError as error:
            yield str(error)


@dataclass(frozen=True)
class Garbage:
    """A folder that nothing needs, and its size."""

    path: Path
    bytes: int


def _kept_runs(store: Store, runs: list[Run], keep_runs: int) -> list[Run]:
    """The newest completed runs with all that came after them, those that work now, and champions past and present."""
    completed = [
        i for i, run in enumerate(runs) if run.status == "completed" and run.record["flow"] not in MEASURING
    ]
    oldest = completed[-keep_runs] if len(completed) > keep_runs else 0
    kept = {run.name for i, run in enumerate(runs) if i >= oldest or run.status == "running"}
    for name in champion_names(store):
        champions = read_champions(store, name)
        kept |= {champions.champion or ""} | {
            name
            for event in champions.history
            if event.event != "refused"
            for name in (event.run, event.former or "")
        }
    return [run for run in runs if run.name in kept]


def _needed(store: Store, runs: list[Run]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Results and shards that runs have come to, or were about to when they ended."""
    entries = [entry for run in runs for part in ("stages", "claimed") for entry in run.record[part].values()]
    artifacts = {(entry["stage"], entry["key"]) for entry in entries}
    shards = {
        (entry["stage"], key)
        for run in runs
        for entry in run.record["claimed"].values()
        for key in entry["shards"]
    }
    for stage, key in artifacts:
        try:
            manifest = read_manifest(store.path("artifacts", stage, key))
        except (OSError, ValueError):
            continue
        shards |= {(stage, shard.key) for shard in manifest.shards or ()}
    return artifacts, shards


def _garbage_paths(store: Store, keep_runs: int) -> list[Path]:
    """What neither the newest `keep_runs` completed runs, nor a run since then, nor a champion, past or present, needs.

    Results, shards, what abandoned builds and trainings left behind, and the folders of older runs. What is
    being built now is held by its lock and stays, and so do the checkpoints that a stopped run would go on from.
    """
    runs = all_runs(store)
    kept = _kept_runs(store, runs, keep_runs)
    artifacts, shards = _needed(store, kept)
    garbage = [*(store.root / DAMAGED).glob("*")]
    for kind in ("building", "work", "attempts"):
        for path in (store.root / kind).glob("*"):
            stage, _, key = path.name.rpartition("-")
            if kind == "work" and (stage, key) in artifacts:
                continue
            with store.lock(stage, key, wait=False) as free:
                if free:
                    garbage.append(path)
    for kind, needed in (("artifacts", artifacts), ("shards", shards)):
        garbage += [
            path for path in (store.root / kind).glob("*/*") if (path.parent.name, path.name) not in needed
        ]
    names = {run.name for run in kept}
    garbage += [run.path for run in runs if run.name not in names]
    return sorted(garbage)


def find_garbage(store: Store, keep_runs: int) -> list[Garbage]:
    """What a collection would remove, see `_garbage_paths`, with sizes."""
    return [Garbage(path, _bytes(path)) for path in _garbage_paths(store, keep_runs)]


def collect(shown: list[Garbage], store: Store, keep_runs: int) -> list[Garbage]:
    """Remove those of `shown` that are garbage still, and return them; meanwhile no run can begin to need one.

    Raises:
        InputError: if something that is at work cannot be waited for.
    """
    deadline = time.monotonic() + _COLLECT_SECONDS
    while True:
        with store.roots(exclusive=True, wait=False) as held:
            if held:
                still = set(_garbage_paths(store, keep_runs))
                removed = [item for item in shown if item.path in still]
                trash = [store.put_away(item.path) for item in removed]
                break
        if time.monotonic() > deadline:
            raise InputError(
                "a `scratchlm task`, or a run that reads its sources, is at work in this store: try again when it has ended"
            )
        time.sleep(0.2)
    for path in trash:
        store.delete(path)
    return removed


def list_runs(store: Store) -> list[dict[str, Any]]:
    """Name, status and flow of every run, and whether it is a champion; the oldest first."""
    champions = {read_champions(store, name).champion for name in champion_names(store)}
    return [
        {
            "run": run.name,
            "status": run.status,
            "flow": run.record["flow"],
            "champion": run.name in champions,
        }
        for run in all_runs(store)
    ]


def show_run(run: Run, store: Store) -> dict[str, Any]:
    """A run: status, recipe, and key, size and figures of each stage."""
    stored, stages = run.all_stored(store), {}
    for name, entry in run.record["stages"].items():
        stages[name] = {
            "stage": entry["stage"],
            "key": entry["key"],
            "path": str(store.path("artifacts", entry["stage"], entry["key"]) / OUT),
            "metrics": stored[name].manifest.metrics if name in stored else None,
        }
    return {
        **{name: value for name, value in run.record.items() if name != "stages"},
        "status": run.status,
        "run": run.name,
        "stages": stages,
    }


def show_artifact(store: Store, key: str) -> dict[str, Any]:
    """The manifest of the result whose key begins so.

    Raises:
        InputError: if there is none, or more than one.
    """
    paths = (
        [path for kind in KINDS for path in (store.root / kind).glob(f"*/{key}*")] if key.isalnum() else []
    )
    if len(paths) != 1:
        raise InputError(
            f"{key!r} is the beginning of {len(paths)} keys in {store.root}: give a run, or more of the key"
        )
    return json.loads((paths[0] / MANIFEST).read_text())
