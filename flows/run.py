"""How the graph is run: independent branches together, each stage once its inputs are there."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flows.recipe import AnyRecipe
from tasks.accept import accept_earlier
from tasks.build import Outcome, build, build_here, look_up
from tasks.errors import InputError
from tasks.machine import Machine
from tasks.progress import Progress
from tasks.stage import Node, topological
from tasks.store.sources import SourceDigests
from tasks.store.store import Store, Stored


class Display(Protocol):
    """What shows a person how a run goes."""

    def started(self, stage: str) -> None:
        """The stage begins."""

    def progressed(self, stage: str, progress: Progress) -> None:
        """The stage is so far."""

    def finished(self, stage: str, outcome: Outcome) -> None:
        """The stage has its result."""

    def failed(self, stage: str, error: BaseException) -> None:
        """The stage failed."""


class Silence:
    """Shows nothing."""

    def started(self, stage: str) -> None:
        """Nothing."""

    def progressed(self, stage: str, progress: Progress) -> None:
        """Nothing."""

    def finished(self, stage: str, outcome: Outcome) -> None:
        """Nothing."""

    def failed(self, stage: str, error: BaseException) -> None:
        """Nothing."""


display: ContextVar[Display] = ContextVar("display", default=Silence())  # noqa: B039


@dataclass(frozen=True)
class Place:
    """Where a run reads and writes, and what it computes on."""

    store: Store
    sources: SourceDigests
    machine: Machine
    accept: frozenset[str] = frozenset()
    """Stages whose earlier result is taken although their code or libraries changed."""


def open_place(recipe: AnyRecipe | None, store: Path, *, rehash: bool = False, machine: Machine | None = None) -> Place:
    """The store at a path, with the recipe's machine, or the one given where there is no recipe.

    Raises:
        InputError: if the store cannot be a folder there, or lies in a folder that is a source.
    """
    opened = Store(store)
    try:
        opened.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--store {str(store)!r} cannot be a folder: {error}") from error
    for source in recipe.sources if recipe else ():
        folder = Path(source.path).expanduser() if not source.path.startswith("~") else Path(source.path)
        if folder.is_dir() and opened.root.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"the store {opened.root} lies in the source folder {source.path!r}, so that results would be read as text: "
                "give another --store, or a folder of its own to the text"
            )
    return Place(
        opened, SourceDigests(opened.root / "sources.sqlite", rehash=rehash), recipe.machine if recipe else machine or Machine()
    )


BuildNode = Callable[[Node, dict[str, Stored]], Awaitable[Outcome]]


async def run_nodes(nodes: list[Node], build_node: BuildNode, note: Callable[[str, Outcome], None]) -> dict[str, Outcome]:
    """Build every node, each as soon as its inputs are there; the first failure ends the others.

    Args:
        nodes: the graph.
        build_node: builds one node from finished inputs.
        note: called with name and outcome as each ends well.

    Returns:
        Outcomes by name of the node.
    """
    outcomes: dict[str, Outcome] = {}
    pending: dict[Node, asyncio.Task[Outcome]] = {}

    async def one(node: Node) -> Outcome:
        inputs = {name: (await asyncio.shield(pending[upstream])).stored for name, upstream in node.inputs.items()}
        outcome = await build_node(node, inputs)
        outcomes[node.name] = outcome
        note(node.name, outcome)
        return outcome

    for node in topological(nodes):
        pending[node] = asyncio.create_task(one(node))
    try:
        done, _ = await asyncio.wait(pending.values(), return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in pending.values():
            task.cancel()
        await asyncio.gather(*pending.values(), return_exceptions=True)
    return outcomes


async def build_shown(node: Node, inputs: dict[str, Stored], place: Place, on_progress: Callable[[Progress], None]) -> Outcome:
    """Build one node in its child process and show it."""
    shown, name = display.get(), node.name
    shown.started(name)

    def progressed(progress: Progress) -> None:
        shown.progressed(name, progress)
        on_progress(progress)

    if name in place.accept:
        accept_earlier(node, inputs, place.store, place.sources)
    try:
        outcome = await build(node, inputs, place.store, place.machine, place.sources, progressed)
    except BaseException as error:
        shown.failed(name, error)
        raise
    shown.finished(name, outcome)
    return outcome


def will_hit(node: Node, inputs: dict[str, Stored], place: Place) -> bool:
    """Whether the result of a node is in the store; what cannot be told yet is no hit."""
    try:
        return look_up(node, inputs, place.store, place.sources)[1] is not None
    except InputError:
        return False


def cached_outcomes(nodes: list[Node], place: Place) -> dict[str, Outcome] | None:
    """The outcomes of all nodes if everything is in the store; None if anything is missing."""
    outcomes: dict[str, Outcome] = {}
    done: dict[Node, Stored] = {}
    for node in topological(nodes):
        inputs = {name: done[upstream] for name, upstream in node.inputs.items()}
        resolved, stored = look_up(node, inputs, place.store, place.sources)
        if stored is None:
            return None
        done[node] = stored
        outcomes[node.name] = Outcome(stored, resolved, True, 0, len(resolved.shard_keys or ()))
    return outcomes


def run_task(
    name: str,
    nodes: list[Node],
    place: Place,
    *,
    first_shards: int | None = None,
    shard: int | None = None,
    force: bool = False,
    out: Path | None = None,
) -> Outcome | None:
    """Build one stage in this process on finished inputs, for a debugger.

    Args:
        name: the stage.
        nodes: the graph it is in.
        first_shards: build only this many missing shards and publish no whole; returns None.
        shard: build only the shard at this position and publish no whole; returns None.
        force: build it although it is there.
        out: new folder for a copy of the files, those of shard K below shards/K.

    Raises:
        InputError: if the stage does not exist, an input is not built yet, or `out` is not empty.
    """
    if out and (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"--out {str(out)!r} is there and not an empty folder: give another one")
    order = topological(nodes)
    stages = {node.name: node for node in order}
    if name not in stages:
        raise InputError(f"there is no stage {name!r}: stages are {', '.join(stages)}")
    done: dict[Node, Stored] = {}
    needed = topological([stages[name]])
    for node in needed[:-1]:
        inputs = {input_name: done[upstream] for input_name, upstream in node.inputs.items()}
        _, stored = look_up(node, inputs, place.store, place.sources)
        if stored is None:
            raise InputError(
                f"{name} needs the result of {node.name}, which is not built yet: run it first with "
                f"`scratchlm task {node.name} RECIPE`, or all with `scratchlm run RECIPE`"
            )
        done[node] = stored
    node = needed[-1]
    inputs = {input_name: done[upstream] for input_name, upstream in node.inputs.items()}
    outcome = build_here(
        node, inputs, place.store, place.machine, place.sources, first_shards=first_shards, shard=shard, force=force
    )
    if out:
        keys = look_up(node, inputs, place.store, place.sources)[0].shard_keys
        _copy(node, place.store, outcome, {i: key for i, key in enumerate(keys or ()) if key and shard in (None, i)}, out)
    return outcome


def _copy(node: Node, store: Store, outcome: Outcome | None, shard_keys: dict[int, str], out: Path) -> None:
    """Copy the files of a result, or of those of its shards that are there."""
    folders = {out: outcome.stored.out} if outcome and outcome.stored.manifest.shards is None else {}
    for position, key in shard_keys.items():
        found = store.find_whole("shards", node.stage.name, key)
        if found:
            folders[out / "shards" / f"{position:05d}"] = found.out
    for target, source in folders.items():
        shutil.copytree(source, target, dirs_exist_ok=True)
