"""init: look at a text, a machine and a time, and write a recipe that fits them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.command.foresee import foresee
from flows.command.options import DEFAULT_STORE, StoreFolder, make_app, make_console
from flows.graphs import graph_of
from flows.recipe.read import load_recipe
from flows.recipe.recipe import Recipe
from flows.recipe.suggest import name_of, suggest
from flows.recipe.survey import Survey, survey
from flows.runs.execute import open_place
from flows.runs.forecast import with_seconds
from flows.runs.plan import plan
from flows.views.terminal import forecast_lines, plan_table, size
from model.errors import InputError
from model.files import write_whole

app = make_app()


def _seen_lines(seen: Survey) -> list[str]:
    """What was found, for a person."""
    files = ", ".join(f"{count:,} {suffix}" for suffix, count in seen.files.items())
    letters = ", ".join(
        f"{share:.0%} {name.capitalize()}" for name, share in seen.scripts.items() if share >= 0.05
    )
    language = "English" if seen.is_english else "not English, or little of it"
    lines = [
        f"{files}: about {size(seen.text_bytes)} of text in {seen.documents:,.0f} documents",
        f"letters: {letters or 'none'}; {language}",
    ]
    if seen.left_out:
        left_out = "; ".join(f"{count:,} {escape(why)}" for why, count in seen.left_out.items())
        lines.append(f"[yellow]left out: {left_out}[/]")
    for name, why in seen.tables_without_text.items():
        lines.append(f"[yellow]left out: {escape(name)}, {escape(why)}; a source of its own can name it[/]")
    for why, (count, place) in seen.unreadable.items():
        lines.append(f"[yellow]cannot be read: {count:,} x {escape(why)}, such as {escape(place)}[/]")
    if seen.text_field:
        lines.append(f"the text of rows is taken from their field {escape(repr(seen.text_field))}")
    return lines


@app.command()
def init(
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT", help="A folder, a file or a glob with your text.", show_default=False),
    ],
    minutes: Annotated[
        float,
        typer.Option("--minutes", min=1, help="Time that a run of the recipe may take here, in minutes."),
    ] = 10,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; NAME.yaml here if empty.", show_default=False),
    ] = None,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Write a recipe for your own text that fits its size, this machine and the time that you have.

    Prints what it saw, the recipe, and its plan.
    """
    path = output or Path(f"{name_of(text)}.yaml")
    if path.exists():
        raise InputError(f"{path} exists already: remove it, or give another name with --output")
    console = make_console()
    with console.status("looking at the text"):
        seen = survey(text)
    for line in _seen_lines(seen):
        console.print(line, highlight=False)

    def takes(recipe: Recipe) -> tuple[float, float]:
        place = open_place(recipe, store)
        nodes = graph_of(recipe, place.store)
        foretold = foresee(recipe, nodes, plan(nodes, place.store, place.sources, {}), place, console)
        assert foretold is not None
        return foretold.total_seconds, foretold.step_seconds

    suggestion = suggest(seen, minutes, takes)
    title = (
        f"Written by scratchlm init for {minutes:g} minutes on this machine. Change what you like: `scratchlm fields` lists the\n"
        f"fields, `scratchlm plan {path}` says what a change costs, `scratchlm run {path}` does it."
    )
    write_whole(path, suggestion.as_yaml(title))
    recipe = load_recipe(path)
    place = open_place(recipe, store)
    nodes = graph_of(recipe, place.store)
    rows = plan(nodes, place.store, place.sources, {})
    foretold = foresee(recipe, nodes, rows, place, console)
    assert foretold is not None
    console.print(f"\n{escape(path.read_text())}", highlight=False)
    console.print(plan_table(with_seconds(rows, foretold)))
    for line in forecast_lines(rows, foretold):
        console.print(line, highlight=False)
    console.print(f"\n[bold]scratchlm run {escape(str(path))}[/]", highlight=False)
