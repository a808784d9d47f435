"""What is in a store, how two of its runs differ, whether it is whole, and what can go."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.runs.champions import champion_names, read_champions
from flows.runs.changes import changed_values, explain_change
from flows.runs.record import Run, all_runs
from model.errors import InputError
from tasks.engine.manifest import MANIFEST, OUT, Manifest
from tasks.engine.store import BrokenArtifact, Kind, Store

KINDS: tuple[Kind, ...] = ("artifacts", "shards")


def folder_bytes(folder: Path) -> int:
    """Size of the files below a folder, in bytes."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


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
        lines.append(f"{stage}: {explain_change(old['ingredients'], new['ingredients'])}{same}")
        was, now = (run.stored(store, stage).manifest.metrics for run in (first, second))
        lines += [
            f"  {name.lstrip('.')}: {before} -> {after}"
            for name, before, after in changed_values(was, now, "")
        ]
    return lines


def verify_store(store: Store) -> Iterator[str]:
    """Every fault of the store, by full hashes."""
    for kind in KINDS:
        for path in sorted((store.root / kind).glob("*/*")):
            try:
                stored = store.find(kind, path.parent.name, path.name)
            except BrokenArtifact as error:
                yield f"{path}: {error}"
                continue
            if stored:
                yield from store.verify(stored)


@dataclass(frozen=True)
class Garbage:
    """A folder that nothing needs, and its size."""

    path: Path
    bytes: int


def _needed(store: Store, keep_runs: int) -> tuple[set[tuple[str, str]], set[tuple[str, str]], set[str]]:
    """Results and shards that recent runs and the champions' history need, and the names of these runs."""
    runs = all_runs(store)
    kept = {run.name for run in runs[-keep_runs:]} | {
        run.name for run in runs if run.record["status"] == "running"
    }
    for name in champion_names(store):
        champions = read_champions(store, name)
        kept |= {champions.champion or ""} | {
            name
            for event in champions.history
            if event.event != "refused"
            for name in (event.run, event.former or "")
        }
    artifacts = {
        (entry["stage"], entry["key"])
        for run in runs
        if run.name in kept
        for entry in run.record["stages"].values()
    }
    shards = set()
    for stage, key in artifacts:
        try:
            manifest = Manifest.model_validate_json(
                (store.path("artifacts", stage, key) / MANIFEST).read_bytes()
            )
        except (OSError, ValueError):
            continue
        shards |= {(stage, shard.key) for shard in manifest.shards or ()}
    return artifacts, shards, kept


def find_garbage(store: Store, keep_runs: int) -> list[Garbage]:
    """What neither the newest `keep_runs` runs nor a champion, present or former, needs.

    Results, shards, what abandoned builds and trainings left behind, and the folders of older runs.
    What is being built now is held by its lock and stays.
    """
    artifacts, shards, runs = _needed(store, keep_runs)
    garbage: list[Path] = []
    busy: set[str] = set()
    for kind in ("building", "work"):
        for path in (store.root / kind).glob("*"):
            stage, _, key = path.name.rpartition("-")
            if kind == "work" and (stage, key) in artifacts:
                continue
            with store.lock(stage, key, wait=False) as free:
                if free:
                    garbage.append(path)
                else:
                    busy.add(stage)
    for kind, needed in (("artifacts", artifacts), ("shards", shards)):
        for path in (store.root / kind).glob("*/*"):
            # Shards of a stage that is being built are listed by nothing yet.
            if (path.parent.name, path.name) not in needed and not (
                kind == "shards" and path.parent.name in busy
            ):
                garbage.append(path)
    garbage += [run.path for run in all_runs(store) if run.name not in runs]
    return [
        Garbage(path, folder_bytes(path) if path.is_dir() else path.lstat().st_size)
        for path in sorted(garbage)
    ]


def remove(garbage: list[Garbage], store: Store) -> None:
    """Remove what `find_garbage` found; a result that is used meanwhile is out of sight at once, not half there."""
    for item in garbage:
        if item.path.parts[len(store.root.parts)] in KINDS:
            store.discard(item.path)
        elif item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)


def list_runs(store: Store) -> list[dict[str, Any]]:
    """Name, status and flow of every run, and whether it is a champion; the oldest first."""
    champions = {read_champions(store, name).champion for name in champion_names(store)}
    return [
        {
            "run": run.name,
            "status": run.record["status"],
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
