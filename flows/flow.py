"""The Prefect flow: one task a stage. Importing this module imports Prefect."""

import asyncio
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.states import Completed, State
from prefect.tasks import exponential_backoff

from flows.pretrain import graph
from flows.recipe import Recipe
from flows.run import BuildNode, Place, build_shown, open_place, run_nodes
from flows.runs import Run, start_run
from tasks.benchmarks import prepare_benchmarks
from tasks.build import Outcome
from tasks.errors import InputError, StageFailed
from tasks.progress import Progress
from tasks.stage import Node
from tasks.store.store import Stored

_ARTIFACT_SECONDS = 3.0


class _ProgressArtifact:
    """A Prefect progress artifact that follows a stage, a few times a minute."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.newest: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        self.newest = progress

    async def follow(self) -> None:
        """Write the newest progress until cancelled."""
        artifact: Any = None
        while True:
            await asyncio.sleep(_ARTIFACT_SECONDS)
            if not self.newest or not self.newest.total:
                continue
            percent = 100 * self.newest.done / self.newest.total
            description = f"{self.stage}: {self.newest.done:,} of {self.newest.total:,} {self.newest.unit}"
            if artifact is None:
                artifact = await acreate_progress_artifact(percent, description=description)
            else:
                await aupdate_progress_artifact(artifact, percent, description=description)


def _may_retry(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Whether another attempt may help: never for a fault of the recipe or the data."""
    error = state.data
    error = getattr(error, "exception", error)
    if isinstance(error, InputError):
        return False
    return error.retryable if isinstance(error, StageFailed) else False


def build_in_prefect(place: Place) -> BuildNode:
    """A function that builds a node as one Prefect task; a hit shows as the state Cached."""
    states: dict[Node, State[Any]] = {}

    async def build_node(node: Node, inputs: dict[str, Stored]) -> Outcome:
        outcomes: list[Outcome] = []
        errors: list[BaseException] = []

        @task(
            name=node.stage.name,
            task_run_name=node.stage.name,
            retries=node.stage.retries,
            retry_delay_seconds=exponential_backoff(2),
            retry_condition_fn=_may_retry,
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        async def build_stage() -> State[Any]:
            logger = get_run_logger()
            artifact = _ProgressArtifact(node.stage.name)
            following = asyncio.create_task(artifact.follow())
            try:
                outcome = await build_shown(node, inputs, place, artifact)
            except (StageFailed, InputError) as error:
                errors.append(error)
                logger.error("%s\n%s", error, getattr(error, "log", ""))
                raise
            finally:
                following.cancel()
            outcomes.append(outcome)
            manifest = outcome.stored.manifest
            logger.info("key %s, %s", manifest.key, manifest.metrics)
            shards = f", {outcome.shards_built} shards built, {outcome.shards_reused} reused" if manifest.shards else ""
            name = "Cached" if outcome.cached else "Built"
            return Completed(name=name, message=f"{node.stage.name} {manifest.key[:12]}{shards}")

        upstream = [states[other] for other in node.inputs.values()]
        states[node] = await build_stage(wait_for=upstream, return_state=True)  # type: ignore
        if outcomes:
            return outcomes[-1]
        raise errors[-1] if errors else StageFailed(f"{node.stage.name}: {states[node].message}")

    return build_node


async def run_recipe(run: Run, nodes: list[Node], build_node: BuildNode) -> dict[str, Outcome]:
    """Run a graph and record in `run` how it went."""
    try:
        outcomes = await run_nodes(nodes, build_node, run.note)
    except asyncio.CancelledError:
        run.end("cancelled")
        raise
    except BaseException as error:
        run.end("failed", str(error))
        raise
    run.end("completed")
    return outcomes


def _run_name() -> str:
    recipe = flow_run.parameters.get("recipe")
    return f"{recipe['name'] if isinstance(recipe, dict) else getattr(recipe, 'name', 'pretrain')}"


@flow(name="pretrain", flow_run_name=_run_name, persist_result=False)
async def pretrain(recipe: Recipe, store: str = "store", rehash: bool = False) -> str:
    """Raw text to a benchmarked model.

    Args:
        recipe: what becomes of which text.
        store: folder of results.
        rehash: hash every source file again.

    Returns:
        Name of the run, a folder below STORE/runs.
    """
    place = open_place(recipe, Path(store), rehash=rehash)
    prepare_benchmarks(recipe.evaluate_model)
    run = start_run(place.store, recipe)
    _finished[run.name] = (run, await run_recipe(run, graph(recipe), build_in_prefect(place)))
    return run.name


_finished: dict[str, tuple[Run, dict[str, Outcome]]] = {}


def pretrain_here(recipe: Recipe, place: Place) -> tuple[Run, dict[str, Outcome]]:
    """Run the flow from this process; returns the run and the outcomes of its stages.

    Raises:
        KeyboardInterrupt: on Ctrl-C and on SIGTERM, once the running stages have ended.
    """
    try:
        name = asyncio.run(pretrain(recipe, str(place.store.root), place.sources.rehash))
    except (TerminationSignal, asyncio.CancelledError):
        raise KeyboardInterrupt from None
    finally:
        # While the server is still there; later they would end up as noise in the terminal.
        APILogHandler().flush()
    return _finished.pop(name)
