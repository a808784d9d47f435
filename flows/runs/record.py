"""Runs: one folder a run, with the recipe, the machine, and the key of every stage."""

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import groupby, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from model.errors import InputError
from model.files import read_json, read_record, write_record
from tasks.engine.build import Outcome
from tasks.engine.stage import Node, Role, finished
from tasks.engine.store import Store, Stored

if TYPE_CHECKING:
    from flows.recipe.recipe import AnyRecipe, Recipe
    from tasks.evaluation.evaluate_model import EvaluateModelConfig

ABLATE = "ablate"
MEASURING = (ABLATE, "evaluate")
"""Flows that measure, and make no model that anybody goes on with: `latest` is none of them, and `gc` counts none."""
RUN, REPORT, LATEST, LOCK = "run.json", "report.html", "latest", "lock"
FORMAT = 3
"""Of run.json; raised when older ones cannot be read any more."""


@dataclass
class Run:
    """One run, kept in `path`/run.json. While it works its process holds `path`/lock, which the kernel frees."""

    path: Path
    record: dict[str, Any] = field(default_factory=dict)
    _held: IO[bytes] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.path.name

    @property
    def status(self) -> str:
        """running, completed, failed, cancelled, nothing new; or killed, if it ended without a word."""
        if self.record["status"] != "running":
            return self.record["status"]
        return "running" if _is_locked(self.path / LOCK) else "killed"

    def save(self) -> None:
        """Write run.json, whole or not at all, also if power is lost."""
        write_record(self.path / RUN, self.record)

    def hold(self) -> None:
        """Say that this process works on it, until it says how it ended or is gone."""
        self._held = open(self.path / LOCK, "ab")  # noqa: SIM115 - closed by `end`
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def claim(self, node: Node, key: str, shard_keys: tuple[str | None, ...] | None) -> None:
        """Write down what a node needs, before it is looked for or built: it stays, also if this run ends before."""
        self.record["claimed"][node.name] = {
            "stage": node.stage.name,
            "key": key,
            "shards": list(shard_keys or ()),
        }
        self.save()

    def note(self, node: Node, outcome: Outcome) -> None:
        """Record how a node of the graph ended."""
        manifest = outcome.stored.manifest
        self.record["stages"][node.name] = {
            "stage": manifest.stage,
            "role": node.role,
            "key": manifest.key,
            "digest": manifest.digest,
            "cached": outcome.cached,
            "shards": {"built": outcome.shards_built, "reused": outcome.shards_reused},
            "seconds": round(outcome.seconds, 3),
            "ingredients": outcome.resolved.ingredients,
        }
        self.record["claimed"].pop(node.name, None)
        self.save()

    def end(self, status: str, error: str | None = None, log: str = "") -> None:
        """Record how the run ended, and the last lines that the process of its cause printed."""
        self.record |= {"status": status, "ended": now(), "error": error, "log": log}
        try:
            self.save()
        finally:
            if self._held:
                self._held.close()
                self._held = None

    def node_with_role(self, role: Role) -> str | None:
        """Name of the node that does this in the run's graph, of several the first by name; None if it did not come to one."""
        names = (name for name, entry in self.record["stages"].items() if entry["role"] == role)
        return min(names, default=None)

    def stored(self, store: Store, name: str) -> Stored:
        """The result of a node of this run's graph.

        Raises:
            InputError: if the run did not come to the stage, or its result is gone or broken.
        """
        entry = self.record["stages"].get(name)
        if entry is None and self.record["flow"] in MEASURING:
            raise InputError(
                f"the run {self.name} was one of {self.record['flow']}, which only measures: it has no result of {name}"
            )
        if entry is None:
            status = self.status
            what = "it is still running" if status == "running" else f"it ended as {status!r}"
            raise InputError(
                f"the run {self.name} has no result of {name}: {what}; `scratchlm run` goes on with it"
            )
        stored = store.find_whole("artifacts", entry["stage"], entry["key"])
        if stored is None:
            raise InputError(
                f"the result of {name} of the run {self.name} is not in the store any more: run its recipe again"
            )
        return stored

    def all_stored(self, store: Store) -> dict[str, Stored]:
        """Every result of this run that is still there, by name of its node."""
        entries = self.record["stages"].items()
        looked_up = {
            name: store.find_whole("artifacts", entry["stage"], entry["key"]) for name, entry in entries
        }
        return {name: stored for name, stored in looked_up.items() if stored}

    def node(self, name: str, label: str) -> Node:
        """A node for another graph that stands for a result of this run."""
        entry = self.record["stages"][name]
        return finished(entry["stage"], entry["key"], label)


def now() -> str:
    """The time, for the record: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def runs_folder(store: Store) -> Path:
    """Where runs are kept."""
    return store.root / "runs"


def start_run(store: Store, recipe: "AnyRecipe", flow: str = "pretrain", champion: str | None = None) -> Run:
    """A new run of a recipe; `latest` points at it from now on.

    Args:
        flow: what runs, pretrain, retrain or finetune.
        champion: run that a retraining is compared with.
    """
    values = recipe.model_dump(mode="json")
    record = {"flow": flow, "champion": champion, "machine": values.pop("machine"), "recipe": values}
    run = new_run(store, recipe.name, record)
    folder = runs_folder(store)
    link = folder / f".{LATEST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(run.name)
    os.replace(link, folder / LATEST)
    return run


def start_evaluation(store: Store, model: str, benchmarks: "EvaluateModelConfig") -> Run:
    """A new run that benchmarks a model which is there already."""
    recipe = {"name": "evaluate", "evaluate_model": benchmarks.model_dump(mode="json")}
    record = {"flow": "evaluate", "model": model, "champion": None, "recipe": recipe, "machine": {}}
    return new_run(store, "evaluate", record)


def start_ablation(store: Store, recipe: "Recipe", without: str, seeds: int) -> Run:
    """A new run that measures what a part of a recipe is worth. It makes no model that anybody goes on with."""
    values = recipe.model_dump(mode="json")
    record = {"flow": ABLATE, "champion": None, "machine": values.pop("machine"), "recipe": values}
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{recipe.name}-without-{without}")[:_LONGEST_NAME]
    return new_run(store, name, {**record, "without": without, "seeds": seeds})


_LONGEST_NAME = 120
"""Of a file, 255 bytes are the most."""


def new_run(store: Store, name: str, record: dict[str, Any]) -> Run:
    """A folder for a run, with what is known of it at its beginning."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run = Run(runs_folder(store) / f"{stamp}-{name}-{secrets.token_hex(2)}")
    run.path.mkdir(parents=True)
    run.hold()
    run.record = {
        "format": FORMAT,
        **record,
        "created": now(),
        "created_ns": time.time_ns(),
        "status": "running",
        "stages": {},
        "claimed": {},
    }
    run.save()
    return run


def unchanged_run(store: Store, recipe: "AnyRecipe", outcomes: dict[str, Outcome], flow: str) -> Run | None:
    """The newest run, if it was of this very recipe and machine, completed, and came to these very results."""
    try:
        run = load_run(runs_folder(store) / LATEST)
    except InputError:
        return None
    values = recipe.model_dump(mode="json")
    asked = {"machine": values.pop("machine"), "recipe": values, "flow": flow}
    return run if _came_to(run, asked, outcomes) else None


def unchanged_evaluation(store: Store, model: str, outcomes: dict[str, Outcome]) -> Run | None:
    """An earlier evaluation of this model that came to these very results, if there is one."""
    runs = (run for run in _runs_newest_first(store) if run.record["flow"] == "evaluate")
    return next((run for run in runs if _came_to(run, {"model": model}, outcomes)), None)


def _came_to(run: Run, asked: dict[str, Any], outcomes: dict[str, Outcome]) -> bool:
    """Whether a run completed, was asked for this, and has these results."""
    keys = {stage: outcome.stored.manifest.key for stage, outcome in outcomes.items()}
    asked = {**asked, "status": "completed"}
    same = {name: run.record.get(name) for name in asked} == asked
    return same and {stage: entry["key"] for stage, entry in run.record["stages"].items()} == keys


def _another_version(path: Path) -> InputError:
    return InputError(
        f"{path} was written by another version of scratchlm: give another --store, or move its folder runs away"
    )


def load_run(path: Path) -> Run:
    """The run below `path`.

    Raises:
        InputError: if there is none.
    """
    try:
        record = read_record(path / RUN)
    except (OSError, ValueError) as error:
        other = read_json(path / RUN)
        if isinstance(other, dict) and other.get("format") != FORMAT:
            raise _another_version(path) from None
        raise InputError(
            f"{path} holds no run: {RUN} cannot be read ({error}); what it made is in the store still, so run its recipe again, "
            "and remove the folder"
        ) from error
    if record.get("format") != FORMAT:
        raise _another_version(path)
    return Run(path.resolve(), record)


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a run."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def all_runs(store: Store) -> list[Run]:
    """Every run that can be read, the oldest first."""
    return list(_runs_newest_first(store))[::-1]


def unreadable_runs(store: Store) -> dict[str, str]:
    """What is wrong with each run that cannot be read, by its name. Such a run is left alone."""
    faults = {}
    for path in sorted(runs_folder(store).glob("*/")):
        if path.is_symlink() or _is_locked(path / LOCK):
            continue
        try:
            load_run(path)
        except InputError as error:
            faults[path.name] = str(error)
    return faults


def find_run(store: Store, name: str) -> Run:
    """The run of this name, or whose name ends or begins with it, or the newest of the recipe of this name; `latest` is the newest.

    Raises:
        InputError: if there is none, or more than one.
    """
    folder = runs_folder(store)
    if name == LATEST and not (folder / LATEST).exists():
        # The run that it pointed at was removed.
        for run in _runs_newest_first(store):
            if run.record["flow"] not in MEASURING:
                return run
    if (folder / name / RUN).is_file() and "/" not in name:
        return load_run(folder / name)
    names = sorted(path.parent.name for path in folder.glob(f"*/{RUN}") if not path.parent.is_symlink())
    fitting = [known for known in names if known.startswith(name) or known.endswith(name)]
    if len(fitting) == 1:
        return load_run(folder / fitting[0])
    if not fitting:
        newest = next(_runs_newest_first(store, rf"\d{{8}}-\d{{6}}-{re.escape(name)}-[0-9a-f]{{4}}"), None)
        if newest is not None:
            return newest
    if not names:
        raise InputError(f"there is no run in {folder}: start one with `scratchlm run RECIPE`")
    near = fitting or get_close_matches(name, names, 3) or names[-3:]
    what = "names more than one run" if fitting else "names no run"
    raise InputError(f"{name!r} {what}: take latest or one of {', '.join(near)}")


def _runs_newest_first(store: Store, name: str = r".*") -> Iterator[Run]:
    """Every run that can be read, and whose name fits a regular expression. None is read before it is asked for."""
    fits = re.compile(name).fullmatch
    folders = [path.parent for path in runs_folder(store).glob(f"*/{RUN}") if fits(path.parent.name)]
    newest_first = sorted((path for path in folders if not path.is_symlink()), reverse=True)
    # Two may begin within the second that is in their names.
    for _, begun_together in groupby(newest_first, key=lambda path: path.name[: len("YYYYMMDD-HHMMSS")]):
        runs = filter(None, map(_load_if_readable, begun_together))
        yield from sorted(runs, key=lambda run: (run.record["created_ns"], run.name), reverse=True)


def _load_if_readable(path: Path) -> Run | None:
    try:
        return load_run(path)
    except InputError:
        return None  # `show`, `verify` and `gc` name it, see `unreadable_runs`


def finished_runs(store: Store) -> Iterator[Run]:
    """Runs that came to a model and its end, the newest first."""
    for run in _runs_newest_first(store):
        is_whole = run.record["status"] == "completed" and run.record["flow"] not in MEASURING
        if is_whole and run.node_with_role("export"):
            yield run


def find_model(store: Store, name: str) -> Run:
    """The newest finished run of the recipe of this name, or of all for `latest`; else the run of this name.

    Raises:
        InputError: if there is none.
    """
    for run in finished_runs(store):
        if name in (LATEST, run.record["recipe"].get("name")):
            return run
    return find_run(store, name)


def previous_entries(store: Store, recipe_name: str) -> dict[str, Any]:
    """What run.json says of each stage in the newest run of the same recipe name that came to it."""
    entries: dict[str, Any] = {}
    own = _runs_newest_first(store, rf"\d{{8}}-\d{{6}}-{re.escape(recipe_name)}-[0-9a-f]{{4}}")
    for run in islice(own, 20):
        for stage, entry in run.record["stages"].items():
            entries.setdefault(stage, entry)
    return entries
