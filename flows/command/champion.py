"""champion show, history, rollback: who it is, how it came to be, and the way back."""

import json
from typing import Annotated

import typer

from flows.command.options import DEFAULT_STORE, AsJson, StoreFolder, make_app
from flows.command.say import say
from flows.runs.champions import champion_names, read_champions, roll_back
from flows.runs.record import load_run, runs_folder
from model.errors import InputError
from tasks.engine.store import Store

app = make_app()

ChampionName = Annotated[
    str | None,
    typer.Argument(help="Name of the recipe; not needed if there is one only.", show_default=False),
]


def _champion_name(store: Store, name: str | None) -> str:
    """The name that is given, or the only one that has a champion."""
    names = champion_names(store)
    if name in names or (name is None and len(names) == 1):
        return name or names[0]
    known = (
        f"names are {', '.join(names)}"
        if names
        else "there is none yet: `scratchlm retrain RECIPE` makes the first one"
    )
    raise InputError(
        f"no champion of {name!r} in {store.root}: {known}" if name else f"which champion? {known}"
    )


@app.callback()
def champion() -> None:
    """The champion of a recipe: who it is, how it came to be, and the way back."""


@app.command()
def show(name: ChampionName = None, store: StoreFolder = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Print the run that is the champion, and the folder of its model."""
    opened = Store(store)
    run = read_champions(opened, _champion_name(opened, name)).champion
    assert run is not None
    model = load_run(runs_folder(opened) / run).stored(opened, "export_model").out
    say(json.dumps({"run": run, "model": str(model)}) if as_json else f"{run}\n{model}")


@app.command()
def history(name: ChampionName = None, store: StoreFolder = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Print every promotion, refusal and rollback, the oldest first."""
    opened = Store(store)
    events = read_champions(opened, _champion_name(opened, name)).history
    if as_json:
        say(json.dumps([event.model_dump() for event in events]))
    for event in () if as_json else events:
        say(f"{event.at}  {event.event:<11}  {event.run}  by {event.by}: {event.reason}")


@app.command()
def rollback(
    name: ChampionName = None,
    store: StoreFolder = DEFAULT_STORE,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history.")] = "",
) -> None:
    """Make the champion before this one the champion again."""
    opened = Store(store)
    run = roll_back(opened, _champion_name(opened, name), reason or "no reason given").champion
    say(f"the champion is {run}")
