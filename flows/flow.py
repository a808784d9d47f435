"""The Prefect flows: one task a stage. Importing this module imports Prefect."""

import asyncio
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prefect import flow, task
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.blocks.system import Secret
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.asyncio import concurrency
from prefect.exceptions import FlowPauseTimeout, PrefectException, TerminationSignal
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.states import Completed, State
from prefect.tasks import exponential_backoff
from pydantic import BaseModel, Field, ValidationError

from flows import evaluate as evaluation
from flows import finetune as finetuning
from flows import pages
from flows import retrain as retraining
from flows.pretrain import graph
from flows.recipe import FinetuneRecipe, Recipe, check_no_secrets, explain
from flows.run import BuildNode, Place, build_shown, open_place, run_nodes, will_hit
from flows.runs import Run, start_run
from tasks.adapt_model import adapt_model
from tasks.benchmarks import prepare_benchmarks
from tasks.build import Outcome
from tasks.continue_training import continue_training
from tasks.errors import InputError, StageFailed
from tasks.evaluate_model import EvaluateModelConfig
from tasks.finetune_model import finetune_model
from tasks.machine import Machine
from tasks.progress import Progress
from tasks.promote_model import promote_model, refuse_model
from tasks.report import render_report
from tasks.secrets import redact
from tasks.stage import Node
from tasks.store.store import Stored
from tasks.train_model import train_model

ACCELERATOR = "accelerator"
_ARTIFACT_SECONDS = 3.0
_Model = TypeVar("_Model", bound=BaseModel)


class _ProgressArtifact:
    """A Prefect progress artifact that follows a stage, a few times a minute."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.newest: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        self.newest = progress

    async def follow(self) -> None:
        """Write the newest progress until cancelled; while the server is away there is nothing to write to."""
        artifact: Any = None
        while True:
            await asyncio.sleep(_ARTIFACT_SECONDS)
            if not self.newest or not self.newest.total:
                continue
            percent = 100 * self.newest.done / self.newest.total
            description = f"{self.stage}: {self.newest.done:,} of {self.newest.total:,} {self.newest.unit}"
            try:
                if artifact is None:
                    artifact = await acreate_progress_artifact(percent, description=description)
                else:
                    await aupdate_progress_artifact(artifact, percent, description=description)
            except (httpx.HTTPError, PrefectException):
                continue


def _may_retry(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Whether another attempt may help: never for a fault of the recipe or the data."""
    error = state.data
    error = getattr(error, "exception", error)
    if isinstance(error, InputError):
        return False
    return error.retryable if isinstance(error, StageFailed) else False


def build_in_prefect(place: Place, run: Run) -> BuildNode:
    """A function that builds a node as one Prefect task; a hit shows as the state Cached."""
    states: dict[Node, State[Any]] = {}

    async def build_node(node: Node, inputs: dict[str, Stored]) -> Outcome:
        outcomes: list[Outcome] = []
        errors: list[BaseException] = []
        hit = will_hit(node, inputs, place)

        @task(
            name=node.name,
            task_run_name=f"{node.name} (cached)" if hit else node.name,
            retries=node.stage.retries,
            retry_delay_seconds=exponential_backoff(2),
            retry_condition_fn=_may_retry,
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        async def build_stage() -> State[Any]:
            logger = get_run_logger()
            artifact = _ProgressArtifact(node.name)
            following = asyncio.create_task(artifact.follow())
            try:
                trains = node.stage in (train_model, continue_training, finetune_model, adapt_model) and not hit
                # Where a server has a global concurrency limit of this name, trainings wait for each other.
                slot = concurrency(ACCELERATOR, raise_on_lease_renewal_failure=False) if trains else nullcontext()
                async with slot:
                    outcome = await build_shown(node, inputs, place, artifact)
            except (StageFailed, InputError) as error:
                errors.append(error)
                reproduce = f"scratchlm task {node.name} {run.name} --store {place.store.root} --pdb"
                logger.error("%s\n%s\nthis stage alone: %s", error, redact(getattr(error, "log", "")), reproduce)
                raise
            finally:
                following.cancel()
            outcomes.append(outcome)
            manifest = outcome.stored.manifest
            logger.info("key %s, %s", manifest.key, manifest.metrics)
            shards = f", {outcome.shards_built} shards built, {outcome.shards_reused} reused" if manifest.shards else ""
            name = "Cached" if outcome.cached else "Built"
            return Completed(name=name, message=f"{node.name} {manifest.key[:12]}{shards}")

        upstream = [states[other] for other in node.inputs.values()]
        states[node] = await build_stage(wait_for=upstream, return_state=True)  # type: ignore
        if outcomes:
            return outcomes[-1]
        raise errors[-1] if errors else StageFailed(f"{node.name}: {states[node].message}")

    return build_node


async def run_recipe(
    run: Run, nodes: list[Node], place: Place, check: Callable[[str, dict[str, Any]], None] = lambda name, metrics: None
) -> dict[str, Outcome]:
    """Run a graph and record in `run` how it went.

    Args:
        check: called with name and figures of each finished node; what it raises ends the run.
    """

    def note(name: str, outcome: Outcome) -> None:
        run.note(name, outcome)
        check(name, outcome.stored.manifest.metrics)

    try:
        outcomes = await run_nodes(nodes, build_in_prefect(place, run), note)
    except retraining.NothingNew as nothing:
        run.end("nothing new", str(nothing))
        raise
    except asyncio.CancelledError:
        run.end("cancelled")
        raise
    except BaseException as error:
        run.end("failed", redact(str(error)))
        raise
    run.end("completed")
    return outcomes


def _run_name() -> str:
    recipe = flow_run.parameters.get("recipe")
    name = recipe.get("name") if isinstance(recipe, dict) else getattr(recipe, "name", None)
    return f"{flow_run.flow_name} {name or 'run'} {datetime.now(UTC):%m-%d %H:%M}"


def _checked(kind: type[_Model], value: Any, parameter: str) -> _Model:
    """A parameter of a flow as its model.

    Raises:
        InputError: with one sentence for each fault.
    """
    if isinstance(value, kind):
        return value
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise InputError(explain(error, parameter, kind=kind)) from None


async def _load_secrets(secrets: dict[str, str] | None) -> None:
    """Put the values of Prefect Secret blocks into the environment, from where the stages take them."""
    for variable, block in (secrets or {}).items():
        try:
            loaded = await Secret.aload(block)
        except ValueError as error:
            raise InputError(
                f"secrets: there is no Secret block {block!r} for {variable}: create it in the Prefect UI under Blocks"
            ) from error
        os.environ[variable] = str(loaded.get())  # type: ignore[attr-defined]


_SomeRecipe = TypeVar("_SomeRecipe", Recipe, FinetuneRecipe)


async def _open(
    kind: type[_SomeRecipe], recipe: Any, store: str, rehash: bool, secrets: dict[str, str] | None
) -> tuple[_SomeRecipe, Place]:
    await _load_secrets(secrets)
    checked = _checked(kind, recipe, "recipe")
    check_no_secrets(checked)
    return checked, open_place(checked, Path(store), rehash=rehash)


_finished: dict[str, tuple[Run, dict[str, Outcome]]] = {}

# Parameters are checked by `_checked`, whose sentences name field, value and mend.
_OPTIONS: dict[str, Any] = {"flow_run_name": _run_name, "persist_result": False, "validate_parameters": False}


@flow(name="pretrain", **_OPTIONS)
async def pretrain(
    recipe: Recipe,
    store: str = "store",
    rehash: bool = False,
    accept: list[str] | None = None,
    secrets: dict[str, str] | None = None,
) -> State[Any]:
    """Raw text to a benchmarked model. What is still valid is not computed again.

    Args:
        recipe: what becomes of which text.
        store: folder of results.
        rehash: hash every source file again instead of trusting size and times.
        accept: stages whose earlier result is taken although their code or libraries changed; the report says so.
        secrets: environment variable -> name of a Prefect Secret block, such as HF_TOKEN -> hub-token.
    """
    checked, place = await _open(Recipe, recipe, store, rehash, secrets)
    return await _run_all(checked, "pretrain", graph(checked), replace(place, accept=frozenset(accept or ())))


async def _run_all(recipe: Recipe | FinetuneRecipe, name: str, nodes: list[Node], place: Place) -> State[Any]:
    """A new run of a recipe, from its beginning to its page."""
    prepare_benchmarks(recipe.evaluate_model)
    run = start_run(place.store, recipe, name)
    outcomes = await run_recipe(run, nodes, place)
    await pages.publish(run, place.store)
    _finished[run.name] = (run, outcomes)
    return Completed(message=run.name)


@flow(name="finetune", **_OPTIONS)
async def finetune(
    recipe: FinetuneRecipe,
    store: str = "store",
    rehash: bool = False,
    accept: list[str] | None = None,
    secrets: dict[str, str] | None = None,
) -> State[Any]:
    """Make a base model answer: conversations to a tuned model, compared with its base.

    Args:
        recipe: the base, and what it becomes by which conversations.
        store: folder of results.
        rehash: hash every source file again instead of trusting size and times.
        accept: stages whose earlier result is taken although their code or libraries changed; the report says so.
        secrets: environment variable -> name of a Prefect Secret block, such as HF_TOKEN -> hub-token.
    """
    checked, place = await _open(FinetuneRecipe, recipe, store, rehash, secrets)
    nodes = finetuning.graph(checked, place.store)
    return await _run_all(checked, "finetune", nodes, replace(place, accept=frozenset(accept or ())))


class Approval(RunInput):
    """What a person says of a challenger."""

    approve: bool = Field(False, description="Make it the champion.")
    reason: str = Field("", description="Why; kept in the champion's history.")


@flow(name="retrain", **_OPTIONS)
async def retrain(
    recipe: Recipe, store: str = "store", rehash: bool = False, force: bool = False, secrets: dict[str, str] | None = None
) -> State[Any]:
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
            raise InputError(f"another retraining of {checked.name!r} works in this store: wait until it has ended")
        champion = retraining.find_champion(checked, place.store)
        if champion:
            news = retraining.find_news(checked, champion, place.store, place.sources)
            get_run_logger().info("%s", news)
            if not force and not news.is_enough(checked.retrain):
                return Completed(name=retraining.NOTHING_NEW, message=str(news))
        prepare_benchmarks(checked.evaluate_model)
        run = start_run(place.store, checked, "retrain", champion.name if champion else None)
        try:
            outcomes = await run_recipe(run, retraining.graph(checked, champion), place, retraining.check_judgeable)
        except retraining.NothingNew as nothing:
            return Completed(name=retraining.NOTHING_NEW, message=str(nothing))
        comparison = outcomes["compare_models"].stored.manifest.metrics if champion else None
        await pages.publish(run, place.store)
        _finished[run.name] = (run, outcomes)
        return await _settle(checked, place, run, champion, comparison)


async def _settle(
    recipe: Recipe, place: Place, run: Run, champion: Run | None, comparison: dict[str, Any] | None
) -> State[Any]:
    """Make the challenger the champion, or say why not."""
    better = comparison is None or comparison["better"]
    reason = comparison["reason"] if comparison else "the first model of this name"
    name, by = (retraining.PROMOTED if better else retraining.REFUSED), "retrain"
    if better and comparison and recipe.retrain.approval:
        answer = await _ask(recipe, run, comparison)
        by = "a person in the Prefect UI" if answer else "nobody"
        said = f": {answer.reason}" if answer and answer.reason else ""
        if not answer or not answer.approve:
            name = retraining.DECLINED
        reason = f"{'approved' if name == retraining.PROMOTED else 'not approved'} by {by}{said}; {reason}"

    @task(name="promote_model", task_run_name="promote_model", cache_policy=NO_CACHE, persist_result=False)
    async def settle() -> State[Any]:
        if name == retraining.PROMOTED:
            promote_model(place.store, recipe.name, run.name, reason, former=champion.name if champion else None, by=by)
        else:
            refuse_model(place.store, recipe.name, run.name, reason, by=by)
        return Completed(name=name, message=reason)

    run.record["verdict"] = {"verdict": name.lower(), "reason": reason}
    run.save()
    state = await settle(return_state=True)  # type: ignore
    if state.is_failed():
        return state
    render_report(run.path, place.store)
    return Completed(name=name, message=f"{run.name}: {reason}")


async def _ask(recipe: Recipe, run: Run, comparison: dict[str, Any]) -> Approval | None:
    """Pause the flow until a person answers in the UI; None if nobody does in time."""
    description = f"{pages.comparison_markdown(comparison)}\n\nMake {run.name} the champion of {recipe.name}?"
    form: Any = Approval.with_initial_data(description=description)
    try:
        return await pause_flow_run(wait_for_input=form, timeout=int(recipe.retrain.approval_hours * 3600))
    except FlowPauseTimeout:
        return None


@flow(name="evaluate", **_OPTIONS)
async def evaluate(
    model: str,
    benchmarks: EvaluateModelConfig = EvaluateModelConfig(),  # noqa: B008
    machine: Machine = Machine(),  # noqa: B008
    store: str = "store",
    secrets: dict[str, str] | None = None,
) -> State[Any]:
    """Benchmark a model that is there already.

    Args:
        model: a run (latest, or the beginning or end of its name), or a Hugging Face folder with safetensors.
        benchmarks: which lm-eval tasks.
        machine: where and how fast; changes no result.
        store: folder of results.
        secrets: environment variable -> name of a Prefect Secret block, such as HF_TOKEN -> hub-token.
    """
    await _load_secrets(secrets)
    checked = _checked(EvaluateModelConfig, benchmarks, "benchmarks")
    place = open_place(None, Path(store), machine=_checked(Machine, machine, "machine"))
    prepare_benchmarks(checked)
    run, nodes = evaluation.start(model, checked, place.store)
    outcomes = await run_recipe(run, nodes, place)
    await pages.publish(run, place.store)
    _finished[run.name] = (run, outcomes)
    return Completed(message=run.name)


def run_here(which: Any, **parameters: Any) -> tuple[State[Any], Run | None, dict[str, Outcome]]:
    """Run a flow from this process; returns its final state, and run and outcomes if it came to a run.

    Raises:
        KeyboardInterrupt: on Ctrl-C and on SIGTERM, once the running stages have ended.
    """

    async def call() -> State[Any]:
        state = await which(**parameters, return_state=True)
        if not state.is_completed():
            await state.aresult()
        return state

    try:
        state = asyncio.run(call())
    except (TerminationSignal, asyncio.CancelledError):
        raise KeyboardInterrupt from None
    finally:
        # While the server is still there; later they would end up as noise in the terminal.
        APILogHandler().flush()
    run, outcomes = _finished.popitem()[1] if _finished else (None, {})
    return state, run, outcomes
