"""ablate and mix: what a part of a recipe is worth."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows import ablate as ablation
from flows.command.options import (
    DEFAULT_STORE,
    AsJson,
    Assignments,
    MachineFile,
    Quiet,
    RecipeFile,
    StoreFolder,
    make_app,
    make_console,
)
from flows.command.run import run_flow
from flows.command.say import say
from flows.graphs import graph_of
from flows.recipe.read import load_recipe, recipe_of_record
from flows.recipe.recipe import Recipe
from flows.runs.execute import Place, open_place
from flows.runs.mixing import told
from flows.runs.plan import CACHED, plan
from flows.runs.record import find_run, previous_entries
from flows.runs.worth import WORTH
from flows.views.terminal import forecast_lines, print_mixture, print_worth
from tasks.engine.stage import Node
from tasks.engine.store import Store

app = make_app()
Seeds = Annotated[
    int,
    typer.Option(
        "--seeds", min=2, help="Models with it, and as many without it: what lies between them is the noise."
    ),
]


@app.command()
def ablate(
    run_or_recipe: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, or a recipe file.", show_default=False)
    ],
    without: Annotated[
        str,
        typer.Option(
            "--without",
            metavar="PART",
            help="What is left out: clean.STEP, clean.filters.NAME, source:NAME, or mixture.",
            show_default=False,
        ),
    ],
    seeds: Seeds = 3,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what a step of cleaning, a source or the mixture is worth, in bits per byte and beside the noise.

    Both texts are made, and small models are trained on each: as many as there are seeds, all of them for as many steps as
    the recipe's. What is in the store is not made again. For less time: `--set train_model.tokens=500_000`.
    """
    path = Path(run_or_recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        recipe = load_recipe(path, assignments, machine)
    else:
        recipe = recipe_of_record(find_run(Store(store), run_or_recipe).record, assignments, machine)
    console, place = make_console(to_stderr=as_json, quiet=quiet), open_place(recipe, store)
    _measure(recipe, without, seeds, place, console, as_json, is_run=not path.is_file())


def _measure(
    recipe: Recipe,
    without: str,
    seeds: int,
    place: Place,
    console: Console,
    as_json: bool,
    is_run: bool = False,
) -> None:
    """Say what it will take, do it, and print what came out."""
    nodes = ablation.graph(recipe, without, seeds)
    rows = plan(nodes, place.store, place.sources, _earlier(nodes, place, recipe.name))
    waiting = {row.stage for row in rows if row.state != CACHED}
    trainings = sum(node.role == "train" and node.name in waiting for node in nodes)
    console.print(
        f"[bold]{escape(recipe.name)}[/] with and without {escape(without)}: {2 * seeds} trainings of "
        f"{recipe.train_model.n_steps:,} steps, of which {trainings} are to be done",
        highlight=False,
    )
    anew = [row for row in rows if is_run and row.stage in _TEXT and row.state != CACHED]
    if anew:
        console.print(
            f"[yellow]the text is made from what is there now, and that is not the run's: {anew[0].stage}, "
            f"{escape(anew[0].reason)}[/]",
            highlight=False,
        )
    for line in forecast_lines(rows, None):
        console.print(line, highlight=False)
    store = str(place.store.root)
    result = run_flow("ablate", console, recipe=recipe, without=without, seeds=seeds, store=store)
    assert result.run is not None
    worth = result.run.record[WORTH]
    console.print()
    print_worth(worth, console)
    console.print(f"run    {escape(result.run.name)}\nreport {escape(str(result.report))}", highlight=False)
    if as_json:
        say(json.dumps({"run": result.run.name, **worth}))


_TEXT = ("ingest", "clean", "split", "train_tokenizer", "tokenize")
"""Stages of the text of a run; with a retraining the tokenizer is that of its champion, and here it is not."""


def _earlier(nodes: list[Node], place: Place, name: str) -> dict[str, dict[str, object]]:
    """By node what the last run of the recipe says of its stage, for what it will take."""
    entries = previous_entries(place.store, name)
    return {node.name: entries[node.stage.name] for node in nodes if node.stage.name in entries}


@app.command()
def mix(
    recipe_file: RecipeFile,
    try_it: Annotated[
        bool,
        typer.Option(
            "--try",
            help="Train small models with the recipe's mixture and without any, and say what it is worth.",
        ),
    ] = False,
    seeds: Seeds = 3,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show how much of the training each source has, and with --try what that is worth."""
    recipe = load_recipe(recipe_file, assignments, machine)
    console, place = make_console(to_stderr=as_json, quiet=quiet), open_place(recipe, store)
    nodes = graph_of(recipe, place.store)
    rows = plan(nodes, place.store, place.sources, previous_entries(place.store, recipe.name))
    shares, warnings = told(recipe, rows)
    print_mixture(shares, warnings, console)
    if try_it:
        _measure(recipe, ablation.MIXTURE, seeds, place, console, as_json)
    elif as_json:
        say(json.dumps({"sources": [vars(share) for share in shares], "warnings": warnings}))
    if not shares and not warnings:
        console.print("the recipe has one source, and all of it is read", highlight=False)
