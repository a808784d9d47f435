"""serve: the Prefect UI, schedules and a worker, from one command."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.command.options import DEFAULT_STORE, StoreFolder, make_app, make_console
from flows.recipe.read import load_any_recipe
from flows.serving.schedule import make_schedule
from flows.serving.serve import serve as serve_until_stopped
from flows.serving.server import LOOPBACK

app = make_app()


@app.command()
def serve(
    recipe_files: Annotated[
        list[Path], typer.Argument(help="Recipes, one deployment each.", show_default=False)
    ],
    store: StoreFolder = DEFAULT_STORE,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the server.")] = 4200,
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Address that it listens on. With another than loopback other computers reach it."
        ),
    ] = LOOPBACK,
    cron: Annotated[
        str | None, typer.Option("--cron", help='Retrain at these times, such as "0 3 * * *".')
    ] = None,
    every: Annotated[
        str | None, typer.Option("--every", help="Retrain at this interval, such as 12h.")
    ] = None,
    rrule: Annotated[
        str | None, typer.Option("--rrule", help='Retrain by a rule, such as "FREQ=WEEKLY;BYDAY=SU".')
    ] = None,
    timezone: Annotated[str, typer.Option("--timezone", help="Time zone of the schedule.")] = "UTC",
) -> None:
    """Start a Prefect server with UI, the deployments of these recipes, and a worker, on this computer."""
    recipes, console = [load_any_recipe(path) for path in recipe_files], make_console()
    schedule = partial(make_schedule, cron, every, rrule, timezone)
    serve_until_stopped(
        recipes, store, host, port, schedule, lambda line: console.print(escape(line), highlight=False)
    )
