"""show, diff, report, verify, gc: looking into a store, and making room in it."""

import json
import sys
from typing import Annotated

import typer

from flows.command.errors import FAILURE_EXIT
from flows.command.options import DEFAULT_STORE, AsJson, RunName, StoreFolder, make_app, make_console
from flows.command.say import say
from flows.runs.inspect import (
    collect,
    diff_runs,
    find_garbage,
    list_runs,
    show_artifact,
    show_run,
    verify_store,
)
from flows.runs.record import find_run, unreadable_runs
from flows.views.report import render_report
from flows.views.terminal import print_run
from model.errors import InputError
from tasks.engine.store import Store

app = make_app()


@app.command()
def show(
    what: Annotated[
        str | None,
        typer.Argument(
            help="A run, or the beginning of a key; the list of runs if empty.", show_default=False
        ),
    ] = None,
    store: StoreFolder = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """List the runs and champions of a store, or show one run or one result."""
    opened = Store(store)
    if what is None:
        runs = list_runs(opened)
        if as_json:
            say(json.dumps(runs))
        for row in () if as_json else runs:
            mark = "  champion" if row["champion"] else ""
            say(f"{row['run']:<40} {row['flow']:<10} {row['status']}{mark}")
        for fault in unreadable_runs(opened).values():
            say(fault, err=True)
        return
    try:
        run = find_run(opened, what)
        if not as_json:
            print_run(run, opened, make_console())
            return
        shown = show_run(run, opened)
    except InputError as error:
        try:
            shown = show_artifact(opened, what)
        except InputError as other:
            raise InputError(f"{error}; {other}") from None
    say(json.dumps(shown, indent=None if as_json else 1))


@app.command()
def diff(
    first: RunName, second: RunName, store: StoreFolder = DEFAULT_STORE, as_json: AsJson = False
) -> None:
    """Say how the second run differs from the first: recipe, code, inputs, counts, scores."""
    opened = Store(store)
    lines = diff_runs(find_run(opened, first), find_run(opened, second), opened)
    if as_json:
        say(json.dumps(lines))
    for line in () if as_json else lines or ["no difference"]:
        say(line)


@app.command()
def report(run_name: RunName = "latest", store: StoreFolder = DEFAULT_STORE) -> None:
    """Render the report of a run again and print its path."""
    opened = Store(store)
    say(render_report(find_run(opened, run_name), opened))


@app.command()
def verify(store: StoreFolder = DEFAULT_STORE) -> None:
    """Check every result in the store against its manifest, by full hashes."""
    faults = 0
    for fault in verify_store(Store(store)):
        faults += 1
        say(fault)
    say(f"{faults} faults" if faults else "all results are what their manifests say")
    if faults:
        raise typer.Exit(FAILURE_EXIT)


@app.command()
def gc(
    store: StoreFolder = DEFAULT_STORE,
    keep_runs: Annotated[
        int,
        typer.Option(
            "--keep-runs",
            min=1,
            help="Newest completed runs that made a model, whose results stay, and all of later ones.",
        ),
    ] = 10,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Free what neither recent runs nor the champions' history need; says what, and asks."""
    opened = Store(store)
    garbage = find_garbage(opened, keep_runs)
    for item in garbage:
        say(f"{item.bytes / 1e6:10.1f} MB  {item.path.relative_to(opened.root)}")
    say(f"{sum(item.bytes for item in garbage) / 1e6:10.1f} MB in {len(garbage)} folders")
    if not garbage:
        return
    if not yes and not sys.stdin.isatty():
        raise InputError("nothing was removed: there is nobody to ask; give --yes")
    if yes or typer.confirm("remove them?"):
        removed = collect(garbage, opened, keep_runs)
        say(f"removed {len(removed)} folders")
        if len(removed) < len(garbage):
            say(f"{len(garbage) - len(removed)} stay, since something needs them by now")
