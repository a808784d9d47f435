"""fields: what a recipe can say."""

from typing import Annotated

import typer

from flows.command.options import make_app
from flows.command.say import say
from flows.recipe.fields import list_fields

app = make_app()


@app.command()
def fields(
    section: Annotated[
        str | None, typer.Argument(help="A section, such as train_model; all if empty.", show_default=False)
    ] = None,
) -> None:
    """List the fields of a recipe with their kinds, defaults and units."""
    for field in list_fields(section):
        say(f"{field.name}  ({field.kind}; default {field.default})\n    {field.description}")
