"""How a graph is run: independent branches together, each stage once its inputs are there."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flows.runs.accept import accept_earlier
from flows.runs.record import Run
from model.errors import InputError
from tasks.engine.build import Outcome, build, look_up
from tasks.engine.machine import Machine
from tasks.engine.progress import Progress
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Node, Role, topological
from tasks.engine.store import Store, Stored

if TYPE_CHECKING:
    from flows.recipe.recipe import AnyRecipe


class Display(Protocol):
    """What shows a person how a run goes."""

    def started(self, node: Node) -> None:
        """The stage begins."""

    def progressed(self, node: Node, progress: Progress) -> None:
        """The stage is so far."""

    def finished(self, node: Node, outcome: Outcome) -> None:
        """The stage has its result."""

    def failed(self, node: Node, error: BaseException) -> None:
        """The stage failed."""


display: ContextVar[Display | None] = ContextVar("display", default=None)
"""Where the stages of this process show themselves; nowhere if there is none."""


@dataclass(frozen=True)
class Place:
    """Where a run reads and writes, and what it computes on.

    Attributes:
        accept: stages whose earlier result is taken although their code or libraries changed.
    """

    store: Store
    sources: SourceDigests
    machine: Machine
    accept: frozenset[str] = frozenset()


def open_place(
    recipe: "AnyRecipe | None", store: Path, *, rehash: bool = False, machine: Machine | None = None
) -> Place:
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
    digests = SourceDigests(opened.root / "sources.sqlite", rehash=rehash)
    return Place(opened, digests, recipe.machine if recipe else machine or Machine())


_SIDE_BY_SIDE: dict[Role, int] = {"train": 1, "evaluate": 2}
"""How many nodes of a role work at once in a run: each takes all of the cores, or of an accelerator."""

BuildNode = Callable[[Node, dict[str, Stored]], Awaitable[Outcome]]
Note = Callable[[Node, Outcome], None]


async def run_nodes(nodes: list[Node], build_node: BuildNode, note: Note) -> dict[str, Outcome]:
    """Build every node, each as soon as its inputs are there; the first failure ends the others.

    Args:
        nodes: the graph.
        build_node: builds one node from finished inputs.
        note: called with each node and its outcome as it ends well.

    Returns:
        Outcomes by name of the node.
    """
    outcomes: dict[str, Outcome] = {}
    pending: dict[Node, asyncio.Task[Outcome]] = {}
    turns = {role: asyncio.Semaphore(n) for role, n in _SIDE_BY_SIDE.items()}

    async def one(node: Node) -> Outcome:
        inputs = {
            name: (await asyncio.shield(pending[upstream])).stored for name, upstream in node.inputs.items()
        }
        async with turns.get(node.role, nullcontext()):
            outcome = await build_node(node, inputs)
        outcomes[node.name] = outcome
        note(node, outcome)
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


async def build_shown(
    node: Node, inputs: dict[str, Stored], place: Place, on_progress: Callable[[Progress], None]
) -> Outcome:
    """Build one node in its child process and show it."""
    shown = display.get()

    def progressed(progress: Progress) -> None:
        if shown:
            shown.progressed(node, progress)
        on_progress(progress)

    if shown:
        shown.started(node)
    try:
        if node.name in place.accept:
            accept_earlier(node, inputs, place.store, place.sources)
        outcome = await build(node, inputs, place.store, place.machine, place.sources, progressed)
    except BaseException as error:
        if shown:
            shown.failed(node, error)
        raise
    if shown:
        shown.finished(node, outcome)
    return outcome


def claim(node: Node, inputs: dict[str, Stored], place: Place, run: Run) -> bool:
    """Write into the run what a node needs, so that no collection takes it; returns whether it is in the store."""
    with place.store.roots():
        try:
            resolved, key, stored = look_up(node, inputs, place.store, place.sources)
        except InputError:
            return False  # the build will say so
        run.claim(node, key, resolved.shard_keys)
    return stored is not None


def cached_outcomes(nodes: list[Node], place: Place) -> dict[Node, Outcome] | None:
    """The outcomes of all nodes if everything is in the store; None if anything is missing."""
    outcomes: dict[Node, Outcome] = {}
    for node in topological(nodes):
        inputs = {name: outcomes[upstream].stored for name, upstream in node.inputs.items()}
        resolved, _, stored = look_up(node, inputs, place.store, place.sources)
        if stored is None:
            return None
        outcomes[node] = Outcome(stored, resolved, True, 0, len(resolved.shard_keys or ()))
    return outcomes


def note_cached(run: Run, outcomes: dict[Node, Outcome]) -> None:
    """Record a run in which everything was in the store."""
    for node, outcome in outcomes.items():
        run.note(node, outcome)
    run.end("completed")
