"""plan and task: what a run would do, and one stage of it alone."""

import cProfile
import json
import pdb as debugger
import pstats
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from flows.command.errors import FAILURE_EXIT
from flows.command.foresee import foresee
from flows.command.options import (
    DEFAULT_STORE,
    AsJson,
    Assignments,
    MachineFile,
    RecipeFile,
    Rehash,
    StoreFolder,
    make_app,
    make_console,
)
from flows.command.say import say
from flows.graphs import graph_of, prepare_run, recipe_and_graph_of_run
from flows.recipe.read import load_any_recipe
from flows.recipe.recipe import Recipe
from flows.runs.execute import open_place
from flows.runs.forecast import with_seconds
from flows.runs.mixing import told
from flows.runs.one_stage import first_rows, run_one_stage
from flows.runs.plan import plan as make_plan
from flows.runs.record import RUN, load_run, previous_entries, runs_folder
from flows.views.terminal import forecast_lines, left_out_lines, plan_table, print_mixture, stage_line
from model.errors import InputError
from tasks.engine import child
from tasks.engine.store import Store

app = make_app()
_STAGE = child.__file__
"""The file whose frames are below every stage."""


@app.command()
def plan(
    recipe_file: RecipeFile,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    rehash: Rehash = False,
    as_json: AsJson = False,
) -> None:
    """Say for each stage whether it is cached, would run and why, or depends on one that would. Builds nothing."""
    recipe = load_any_recipe(recipe_file, assignments, machine)
    place = open_place(recipe, store, rehash=rehash)
    nodes = graph_of(recipe, place.store)
    rows = make_plan(nodes, place.store, place.sources, previous_entries(place.store, recipe.name))
    console = make_console(to_stderr=as_json)
    foretold = foresee(recipe, nodes, rows, place, console)
    rows = with_seconds(rows, foretold) if foretold else rows
    if as_json:
        say(json.dumps([row.as_json() for row in rows]))
        return
    console.print(plan_table(rows))
    if isinstance(recipe, Recipe):
        print_mixture(*told(recipe, rows), console)
    for line in [*forecast_lines(rows, foretold), *left_out_lines(recipe.sources)]:
        console.print(line, highlight=False)


@contextmanager
def _profiled() -> Iterator[None]:
    """Print the functions that take most time, to standard error."""
    profiler = cProfile.Profile()
    with profiler:
        yield
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(30)


@contextmanager
def _post_mortem() -> Iterator[None]:
    """Open the debugger where the stage fails, on bad data too; what is wrong before it begins is a sentence as ever."""
    try:
        yield
    except Exception as error:
        in_stage = any(frame.filename == _STAGE for frame in traceback.extract_tb(error.__traceback__))
        if isinstance(error, InputError) and not in_stage:
            raise
        traceback.print_exc()
        debugger.post_mortem(sys.exc_info()[2])
        raise typer.Exit(FAILURE_EXIT) from None


@app.command()
def task(
    name: Annotated[str, typer.Argument(help="A stage, such as clean or train_model.", show_default=False)],
    recipe_file: Annotated[
        Path, typer.Argument(help="A recipe, or the name of a run whose stage it is.", show_default=False)
    ],
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    pdb: Annotated[bool, typer.Option("--pdb", help="Stop in the debugger where the stage fails.")] = False,
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, help="Build this many shards of a map stage and publish no whole."),
    ] = None,
    shard: Annotated[
        int | None,
        typer.Option("--shard", min=0, help="Build the shard at this position only, counted from 0."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Copy the files of the result, or of these shards, to a new folder."
        ),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Print where the time goes (cProfile).")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build it although its result is there.")] = False,
) -> None:
    """Run one stage in this process, on cached inputs, without any server: for debugging."""
    opened = Store(store)
    if not recipe_file.exists() and (runs_folder(opened) / recipe_file / RUN).is_file():
        made, nodes = recipe_and_graph_of_run(load_run(runs_folder(opened) / recipe_file), opened)
        place = open_place(made, store)
    else:
        recipe = load_any_recipe(recipe_file, assignments, machine)
        place = open_place(recipe, store)
        nodes = prepare_run(recipe, place)
    with _post_mortem() if pdb else nullcontext(), _profiled() if profile else nullcontext():
        built = run_one_stage(name, nodes, place, first_shards=sample, shard=shard, force=force, out=out)
    if built.whole is None:
        say(f"{name}: {len(built.shards)} shards are there; the whole was not published")
        for position, stored in built.shards.items():
            say(f"\nshard {position}: {stored.out}")
            say(json.dumps(stored.manifest.metrics))
            for line in first_rows(stored.out):
                say(line)
    else:
        make_console().print(stage_line(name, built.whole), highlight=False)
        say(json.dumps(built.whole.stored.manifest.metrics, indent=1))
        say(built.whole.stored.out)
    if out:
        say(out)
