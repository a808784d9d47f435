"""run, finetune, retrain, evaluate: what trains or measures a model."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from flows import evaluate as evaluation
from flows.command.foresee import foresee
from flows.command.options import (
    DEFAULT_STORE,
    Accept,
    AsJson,
    Assignments,
    MachineFile,
    ModelName,
    Quiet,
    RecipeFile,
    Rehash,
    StoreFolder,
    make_app,
    make_console,
)
from flows.command.say import say
from flows.graphs import prepare_run
from flows.recipe.read import load_any_recipe, load_machine, load_recipe
from flows.recipe.recipe import AnyRecipe, FinetuneRecipe, Recipe
from flows.runs.base import model_node
from flows.runs.execute import Place, cached_outcomes, display, note_cached, open_place
from flows.runs.plan import CACHED, plan
from flows.runs.record import (
    Run,
    previous_entries,
    start_evaluation,
    start_run,
    unchanged_evaluation,
    unchanged_run,
)
from flows.runs.result import RunResult
from flows.runs.speed import check_memory
from flows.serving.server import API_URL, prefect_server
from flows.views.report import render_report
from flows.views.terminal import TerminalDisplay, forecast_lines, print_result, stage_line
from model.errors import InputError
from model.imports import uncollected
from tasks.benchmarks.items import prepare_benchmarks
from tasks.engine.stage import Node
from tasks.evaluation.evaluate_model import EvaluateModelConfig
from tasks.training.settings import TrainModelConfig, check_machine, machine_of_training

app = make_app()


def run_flow(name: str, console: Console, **parameters: Any) -> RunResult:
    """Run a flow from this process, on a server that is there or its own, and show it in the terminal; returns what it returns."""
    with prefect_server(Path(parameters["store"])), TerminalDisplay(console) as shown:
        # Prefect reads its environment when it is imported, and needs a second or two for it.
        with uncollected():
            from flows.serving.here import run_here

        token = display.set(shown)
        try:
            return run_here(name, **parameters)
        finally:
            display.reset(token)


def _from_store(
    nodes: list[Node], place: Place, console: Console, make_run: Callable[[dict[Node, Any]], Run]
) -> RunResult | None:
    """The result of a run in which everything is in the store, without a server; None if anything is missing.

    Args:
        make_run: a new run, or an earlier one that was the same; called with the outcomes.
    """
    with place.store.roots():
        outcomes = None if os.environ.get(API_URL) else cached_outcomes(nodes, place)
        if outcomes is None:
            return None
        run = make_run(outcomes)
        if run.record["status"] == "running":
            note_cached(run, outcomes)
    for node, outcome in outcomes.items():
        console.print(stage_line(node.name, outcome), highlight=False)
    result = RunResult(
        "Completed", run=run, outcomes={node.name: outcome for node, outcome in outcomes.items()}
    )
    if result.report and not result.report.is_file():
        render_report(run, place.store)
    return result


def _finish(result: RunResult, console: Console, as_json: bool) -> None:
    print_result(result, console)
    if as_json:
        say(json.dumps(result.summary()))


def _run_recipe(
    flow: str, recipe: AnyRecipe, place: Place, rehash: bool, console: Console, as_json: bool
) -> None:
    """Run a recipe by its flow, or show the earlier run if nothing at all changed."""
    nodes = prepare_run(recipe, place)
    rows = plan(nodes, place.store, place.sources, previous_entries(place.store, recipe.name))
    waiting = [row.stage for row in rows if row.state != CACHED]

    def make_run(outcomes: dict[Node, Any]) -> Run:
        named = {node.name: outcome for node, outcome in outcomes.items()}
        return unchanged_run(place.store, recipe, named, flow) or start_run(place.store, recipe, flow)

    result = None if waiting else _from_store(nodes, place, console, make_run)
    if result is None:
        console.print(
            f"[bold]{escape(recipe.name)}[/]: {len(rows) - len(waiting)} of {len(rows)} stages are cached",
            highlight=False,
        )
        if "train_model" in waiting and isinstance(recipe, Recipe):
            training = TrainModelConfig(model=recipe.model, train=recipe.train_model)
            check_machine(training, machine_of_training(training, place.machine))
            check_memory(recipe, place)
        foretold = foresee(recipe, nodes, rows, place, console)
        for line in forecast_lines(rows, foretold) if foretold else ():
            console.print(line, highlight=False)
        store, accept = str(place.store.root), sorted(place.accept)
        result = run_flow(flow, console, recipe=recipe, store=store, rehash=rehash, accept=accept)
    _finish(result, console, as_json)


def _accepting(place: Place, accept: list[str] | None) -> Place:
    return replace(place, accept=frozenset(accept or ()))


@app.command()
def run(
    recipe_file: RecipeFile,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    rehash: Rehash = False,
    accept: Accept = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe: raw text to a benchmarked model. What is still valid is not computed again."""
    recipe = load_recipe(recipe_file, assignments, machine)
    place = _accepting(open_place(recipe, store, rehash=rehash), accept)
    _run_recipe("pretrain", recipe, place, rehash, make_console(to_stderr=as_json, quiet=quiet), as_json)


@app.command()
def finetune(
    recipe_file: RecipeFile,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    rehash: Rehash = False,
    accept: Accept = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a base model answer: conversations to a tuned model, compared with its base."""
    recipe = load_any_recipe(recipe_file, assignments, machine)
    if not isinstance(recipe, FinetuneRecipe):
        raise InputError(
            f"{recipe_file} has no base, so it is a recipe for training from scratch: use `scratchlm run`, or add base"
        )
    place = _accepting(open_place(recipe, store, rehash=rehash), accept)
    _run_recipe("finetune", recipe, place, rehash, make_console(to_stderr=as_json, quiet=quiet), as_json)


@app.command()
def retrain(
    recipe_file: RecipeFile,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    rehash: Rehash = False,
    force: Annotated[
        bool, typer.Option("--force", help="Train although there is too little new text.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train on the text that is there now, and make the model the champion only if it is better."""
    recipe, console = (
        load_recipe(recipe_file, assignments, machine),
        make_console(to_stderr=as_json, quiet=quiet),
    )
    result = run_flow(
        "retrain", console, recipe=recipe, store=str(store.absolute()), rehash=rehash, force=force
    )
    console.print(f"[bold]{result.verdict}[/]: {escape(result.reason)}", highlight=False)
    if as_json:
        say(json.dumps({"outcome": result.verdict, "reason": result.reason, "run": result.name}))


@app.command()
def evaluate(
    model: ModelName,
    recipe_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="A recipe whose sections evaluate_model and machine are taken.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks", metavar="TASK[,TASK]", help="lm-eval tasks, in place of the recipe's. Repeatable."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Where the items come from, as evaluate_model.data of a recipe."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Items of each task, counted from the first.")
    ] = None,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Benchmark a model that is there already: of a run, or in a Hugging Face folder."""
    if assignments and not recipe_file:
        raise InputError(
            "--set is given without a recipe, whose field it would override: give one, or --tasks and --limit"
        )
    recipe = load_any_recipe(recipe_file, assignments, machine) if recipe_file else None
    benchmarks = recipe.evaluate_model if recipe else EvaluateModelConfig()
    names = [name.strip() for given in tasks or () for name in given.split(",") if name.strip()]
    changed = {"tasks": tuple(names) or None, "data": data, "limit": limit}
    config = EvaluateModelConfig(
        **{**benchmarks.model_dump(), **{name: value for name, value in changed.items() if value is not None}}
    )
    where = recipe.machine if recipe else load_machine(machine)
    console, place = make_console(to_stderr=as_json, quiet=quiet), open_place(None, store, machine=where)
    prepare_benchmarks(config)
    nodes = evaluation.graph(model_node(model, place.store), config)

    def make_run(outcomes: dict[Node, Any]) -> Run:
        named = {node.name: outcome for node, outcome in outcomes.items()}
        return unchanged_evaluation(place.store, model, named) or start_evaluation(place.store, model, config)

    result = _from_store(nodes, place, console, make_run)
    if result is None:
        given = {"benchmarks": config, "machine": where, "store": str(place.store.root)}
        result = run_flow("evaluate", console, model=model, **given)
    _finish(result, console, as_json)
