"""The Prefect flows, with one task a stage. Importing this module imports Prefect.

Each flow returns a `RunResult`, so that a flow of your own can `await pretrain(recipe)`.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, concurrency
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, State
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import quote

from flows import ablate as ablation
from flows import evaluate as evaluation
from flows import retrain as retraining
from flows.graphs import prepare_run
from flows.recipe.read import check_no_secrets, checked_values
from flows.recipe.recipe import AnyRecipe, FinetuneRecipe, Recipe
from flows.runs.base import model_node
from flows.runs.champions import find_champion, promote_model, refuse_model
from flows.runs.execute import BuildNode, Place, build_shown, claim, open_place, run_nodes
from flows.runs.forecast import foretell
from flows.runs.news import find_news
from flows.runs.record import Run, start_ablation, start_evaluation, start_run
from flows.runs.result import RunResult
from flows.runs.worth import WORTH, worth_of
from flows.serving.secrets import load_secrets
from flows.views import pages
from flows.views.report import render_report
from model.errors import InputError, StageFailed
from tasks.benchmarks.items import prepare_benchmarks
from tasks.engine.build import LOG, Outcome, tail
from tasks.engine.machine import Machine
from tasks.engine.secrets import redact
from tasks.engine.stage import Node
from tasks.engine.store import Store, Stored
from tasks.evaluation.evaluate_model import EvaluateModelConfig

ACCELERATOR = "accelerator"
"""Tag of the tasks that train, and name of the global concurrency limit that they take a slot of."""

PROMOTED_EVENT = "scratchlm.champion.promoted"
"""Emitted when a champion is made; its payload has name, run and model (the exported folder)."""
_LOG_LINES, _SERVER_SECONDS = 50, 300.0
_SomeRecipe = TypeVar("_SomeRecipe", Recipe, FinetuneRecipe)


def _may_retry(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Whether another attempt may help: never for a fault of the recipe or the data."""
    error = getattr(state.data, "exception", state.data)
    return isinstance(error, StageFailed) and error.retryable


@dataclass(frozen=True)
class _Job:
    """A node to build, where, and for which run."""

    node: Node
    inputs: dict[str, Stored]
    place: Place
    run: Run
    hit: bool


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_may_retry)
async def build_stage(job: _Job) -> State[Any]:
    """Build one node; a hit ends in the state Cached."""
    logger, node = get_run_logger(), job.node
    artifact = pages.ProgressArtifact(node.name)
    following = asyncio.create_task(artifact.follow())
    try:
        # Where a server has a global concurrency limit of this name, trainings wait for each other.
        trains = node.role == "train" and not job.hit
        async with (
            concurrency(ACCELERATOR, raise_on_lease_renewal_failure=False) if trains else nullcontext()
        ):
            outcome = await build_shown(node, job.inputs, job.place, artifact)
    except (StageFailed, InputError) as error:
        reproduce = f"scratchlm task {node.name} {job.run.name} --store {job.place.store.root} --pdb"
        logger.error("%s\n%s\nthis stage alone: %s", error, redact(getattr(error, "log", "")), reproduce)
        raise
    finally:
        following.cancel()
    manifest = outcome.stored.manifest
    printed = "" if outcome.cached else tail(outcome.stored.path / LOG, _LOG_LINES)
    if printed:
        logger.info("the last lines that %s printed:\n%s", node.name, redact(printed))
    logger.info("key %s, %s", manifest.key, manifest.metrics)
    shards = (
        f", {outcome.shards_built} shards built, {outcome.shards_reused} reused" if manifest.shards else ""
    )
    message = f"{node.name} {manifest.key[:12]}{shards}"
    return Completed(name="Cached" if outcome.cached else "Built", message=message, data=_Held(outcome))


class _Held:
    """An outcome in a state. Prefect searches the data of every state that a task waits for, and not this class."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


def _tags(node: Node) -> list[str]:
    return [f"stage:{node.stage.name}", *([ACCELERATOR] if node.role == "train" else [])]


def build_in_prefect(place: Place, run: Run) -> BuildNode:
    """A function that builds a node as one Prefect task, named and tagged by its stage."""
    states: dict[Node, State[Any]] = {}

    async def build_node(node: Node, inputs: dict[str, Stored]) -> Outcome:
        hit = claim(node, inputs, place, run)
        named = build_stage.with_options(
            name=node.name,
            task_run_name=f"{node.name} (cached)" if hit else node.name,
            # A hit takes no slot of any limit. Prefect asks the server for the limits of every tag, and SQLite
            # answers two such questions at once with 503, after which the client waits two seconds.
            tags=[] if hit else _tags(node),
            retries=node.stage.retries,
            retry_delay_seconds=exponential_backoff(2),
        )
        upstream = [states[other] for other in node.inputs.values()]
        states[node] = await _with_patience(named, quote(_Job(node, inputs, place, run, hit)), upstream)
        built = await states[node].aresult(raise_on_failure=False)
        if isinstance(built, _Held):
            return built.outcome
        if isinstance(built, StageFailed | InputError):
            raise built
        raise StageFailed(f"{node.name}: {states[node].message}") from built

    return build_node


async def _with_patience(named: Any, job: Any, upstream: list[State[Any]]) -> State[Any]:
    """Run a task. The server is asked for the limits of its tags, and while it is away the task waits for it."""
    deadline = time.monotonic() + _SERVER_SECONDS
    while True:
        try:
            return await named(job, wait_for=upstream, return_state=True)
        except ConcurrencySlotAcquisitionError as error:
            if not isinstance(error.__cause__, httpx.TransportError) or time.monotonic() > deadline:
                raise
            await asyncio.sleep(2)


async def run_recipe(
    run: Run,
    nodes: list[Node],
    place: Place,
    check: Callable[[str, dict[str, Any]], None] = lambda name, metrics: None,
    conclude: Callable[[Run], None] = lambda run: None,
) -> RunResult:
    """Run a graph, record in `run` how it went, and leave its page.

    Args:
        check: called with name and figures of each finished node; what it raises ends the run.
        conclude: called once all nodes are finished, to write into the run what they come to together.
    """

    def note(node: Node, outcome: Outcome) -> None:
        run.note(node, outcome)
        check(node.name, outcome.stored.manifest.metrics)

    try:
        outcomes = await run_nodes(nodes, build_in_prefect(place, run), note)
        conclude(run)
    except retraining.NothingNew as nothing:
        run.end("nothing new", str(nothing))
        raise
    except asyncio.CancelledError:
        run.end("cancelled")
        raise
    except BaseException as error:
        try:
            run.end("failed", redact(str(error)), redact(getattr(error, "log", "")))
            render_report(run, place.store)
        except Exception as other:
            # A full disk, say: the run is known to have ended by its lock, and why is what the caller hears.
            error.add_note(f"the end of the run could not be written: {other}")
        raise
    run.end("completed")
    await pages.publish(run, place.store)
    return RunResult("Completed", run=run, outcomes=outcomes)


def _state(result: RunResult) -> Any:
    """The final state of a flow, named by the verdict: what the flow returns is in it, and is what its caller gets."""
    return Completed(name=result.verdict, message=result.reason or result.name, data=result)


def _run_name() -> str:
    recipe = flow_run.parameters.get("recipe")
    name = recipe.get("name") if isinstance(recipe, dict) else getattr(recipe, "name", None)
    return f"{flow_run.flow_name} {name or 'run'} {datetime.now(UTC):%m-%d %H:%M}"


async def _open(
    kind: type[_SomeRecipe], recipe: Any, store: str, rehash: bool, secrets: dict[str, str] | None
) -> tuple[_SomeRecipe, Place]:
    await load_secrets(secrets)
    checked = checked_values(kind, recipe, "recipe")
    check_no_secrets(checked)
    return checked, open_place(checked, Path(store), rehash=rehash)


async def _run_all(recipe: AnyRecipe, name: str, place: Place) -> Any:
    """A new run of a recipe, from its beginning to its page."""
    nodes = prepare_run(recipe, place)
    run = start_run(place.store, recipe, name)
    if isinstance(recipe, Recipe):
        foretell(run, recipe, nodes, place)
    return _state(await run_recipe(run, nodes, place))


# Parameters are checked by `checked_values`, whose sentences name field, value and mend.
_OPTIONS: dict[str, Any] = {"flow_run_name": _run_name, "persist_result": False, "validate_parameters": False}


@flow(name="pretrain", **_OPTIONS)
async def pretrain(
    recipe: Recipe,
    store: str = "store",
    rehash: bool = False,
    accept: list[str] | None = None,
    secrets: dict[str, str] | None = None,
) -> RunResult:
    """Raw text to a benchmarked model. What is still valid is not computed again.

    Args:
        recipe: what becomes of which text.
        store: folder of results.
        rehash: hash every source file again instead of trusting size and times.
        accept: stages whose earlier result is taken although their code or libraries changed; the report says so.
        secrets: environment variable -> name of a Prefect Secret block, such as HF_TOKEN -> hub-token.
    """
    checked, place = await _open(Recipe, recipe, store, rehash, secrets)
    return await _run_all(checked, "pretrain", replace(place, accept=frozenset(accept or ())))


@flow(name="finetune", **_OPTIONS)
async def finetune(
    recipe: FinetuneRecipe,
    store: str = "store",
    rehash: bool = False,
    accept: list[str] | None = None,
    secrets: dict[str, str] | None = None,
) -> RunResult:
    """Make a base model answer: conversations to a tuned model, compared with its base.

    Args:
        recipe: the base, and what it becomes by which conversations.
        store: folder of results.
        rehash: hash every source file again instead of trusting size and times.
        accept: stages whose earlier result is taken although their code or libraries changed; the report says so.
        secrets: environment variable -> name of a Prefect Secret block, such as HF_TOKEN -> hub-token.
    """
    checked, place = await _open(FinetuneRecipe, recipe, store, rehash, secrets)
    return await _run_all(checked, "finetune", replace(place, accept=frozenset(accept or ())))


@flow(name="evaluate", **_OPTIONS)
async def evaluate(
    model: str,
    benchmarks: EvaluateModelConfig = EvaluateModelConfig(),  # noqa: B008
    machine: Machine = Machine(),  # noqa: B008
    store: str = "store",
    secrets: dict[str, str] | None = None,
) -> RunResult:
    """Benchmark a model that is there already.

    Args:
        model: a run (latest, or the beginning or end of its name), or a Hugging Face folder with safetensors.
        benchmarks: which lm-eval tasks.
        machine: where and how fast; changes no result.
        store: folder of results.
        secrets: environment variable -> name of a Prefect Secret block, such as HF_TOKEN -> hub-token.
    """
    await load_secrets(secrets)
    config = checked_values(EvaluateModelConfig, benchmarks, "benchmarks")
    place = open_place(None, Path(store), machine=checked_values(Machine, machine, "machine"))
    prepare_benchmarks(config)
    nodes = evaluation.graph(model_node(model, place.store), config)
    return _state(await run_recipe(start_evaluation(place.store, model, config), nodes, place))


@flow(name="ablate", **_OPTIONS)
async def ablate(
    recipe: Recipe,
    without: str,
    seeds: int = 3,
    store: str = "store",
    rehash: bool = False,
    secrets: dict[str, str] | None = None,
) -> RunResult:
    """Measure what a step of cleaning, a source or the mixture is worth: train with it and without it, some times each.

    Args:
        recipe: what becomes of which text.
        without: clean.STEP, clean.filters.NAME, source:NAME, or mixture.
        seeds: models with it, and as many without it; two at least, since what lies between them is the noise.
        store: folder of results.
        rehash: hash every source file again instead of trusting size and times.
        secrets: environment variable -> name of a Prefect Secret block, such as HF_TOKEN -> hub-token.
    """
    checked, place = await _open(Recipe, recipe, store, rehash, secrets)
    nodes = ablation.graph(checked, without, seeds)
    prepare_benchmarks(checked.evaluate_model)
    run = start_ablation(place.store, checked, without, seeds)

    def conclude(run: Run) -> None:
        run.record[WORTH] = worth_of(run, place.store)

    result = await run_recipe(run, nodes, place, conclude=conclude)
    return _state(replace(result, reason=run.record[WORTH]["sentence"]))


@flow(name="retrain", **_OPTIONS)
async def retrain(
    recipe: Recipe,
    store: str = "store",
    rehash: bool = False,
    force: bool = False,
    secrets: dict[str, str] | None = None,
) -> RunResult:
    """Pretrain on the text that is there now, and promote the model only if it is better than the champion.

    Args:
        recipe: what becomes of which text; its name is the champion's. Section retrain says when and how.
        store: folder of results.
        rehash: hash every source file again instead of trusting size and times.
        force: train although there is less new text than section retrain asks for.
        secrets: environment variable -> name of a Prefect Secret block, such as HF_TOKEN -> hub-token.
    """
    checked, place = await _open(Recipe, recipe, store, rehash, secrets)
    retraining.check_recipe(checked)
    with place.store.lock("retrain", checked.name, wait=False) as held:
        if not held:
            raise InputError(
                f"another retraining of {checked.name!r} works in this store: wait until it has ended"
            )
        champion = find_champion(checked, place.store)
        if champion:
            news = find_news(checked, champion, place.store, place.sources)
            get_run_logger().info("%s", news)
            if not force and not news.is_enough(checked.retrain):
                return _state(RunResult(retraining.NOTHING_NEW, str(news)))
        prepare_benchmarks(checked.evaluate_model)
        run = start_run(place.store, checked, "retrain", champion.name if champion else None)
        try:
            result = await run_recipe(
                run, retraining.graph(checked, champion), place, retraining.check_judgeable
            )
        except retraining.NothingNew as nothing:
            return _state(RunResult(retraining.NOTHING_NEW, str(nothing)))
        return await _settle(checked, place.store, result, champion)


async def _settle(recipe: Recipe, store: Store, result: RunResult, champion: Run | None) -> Any:
    """Make the challenger the champion, or say why not."""
    run, comparison = result.run, result.metrics("compare_models")
    assert run is not None
    better = comparison is None or comparison["better"]
    reason = comparison["reason"] if comparison else "the first model of this name"
    verdict, by = (retraining.PROMOTED if better else retraining.REFUSED), "retrain"
    if better and comparison and recipe.retrain.approval:
        answer = await pages.ask(recipe, run, comparison)
        by = "a person in the Prefect UI" if answer else "nobody"
        said = f": {answer.reason}" if answer and answer.reason else ""
        if not answer or not answer.approve:
            verdict = retraining.DECLINED
        reason = f"{'approved' if verdict == retraining.PROMOTED else 'not approved'} by {by}{said}; {reason}"
    former = champion.name if champion else None
    settle: Any = settle_champion
    state = await settle(
        quote(_Verdict(store, recipe.name, run.name, former, verdict, reason, by)), return_state=True
    )
    if state.is_failed():
        return state
    run.record["verdict"] = {"verdict": verdict.lower(), "reason": reason}
    run.save()
    if verdict == retraining.PROMOTED:
        emit_event(
            PROMOTED_EVENT,
            resource={"prefect.resource.id": f"scratchlm.champion.{recipe.name}"},
            payload={"name": recipe.name, "run": run.name, "model": str(result.model)},
        )
    render_report(run, store)
    return _state(replace(result, verdict=verdict, reason=f"{run.name}: {reason}"))


@dataclass(frozen=True)
class _Verdict:
    """What is written into a champion's history."""

    store: Store
    name: str
    run: str
    former: str | None
    verdict: str
    reason: str
    by: str


@task(name="promote_model", task_run_name="promote_model", cache_policy=NO_CACHE, persist_result=False)
async def settle_champion(verdict: _Verdict) -> State[None]:
    """Write the verdict into the champion's history."""
    if verdict.verdict == retraining.PROMOTED:
        promote_model(
            verdict.store, verdict.name, verdict.run, verdict.reason, former=verdict.former, by=verdict.by
        )
    else:
        refuse_model(verdict.store, verdict.name, verdict.run, verdict.reason, by=verdict.by)
    return Completed(name=verdict.verdict, message=verdict.reason)
