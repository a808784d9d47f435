"""What a run will take, for a person who is about to start it."""

from rich.console import Console

from flows.recipe.recipe import AnyRecipe, Recipe
from flows.runs.execute import Place
from flows.runs.forecast import Forecast, forecast
from flows.runs.plan import Planned
from tasks.engine.stage import Node


def foresee(
    recipe: AnyRecipe, nodes: list[Node], rows: list[Planned], place: Place, console: Console
) -> Forecast | None:
    """The forecast of a training from scratch, tried first where that is worth some seconds; None for a fine-tuning."""
    if not isinstance(recipe, Recipe):
        return None
    with console.status("") as status:
        return forecast(recipe, nodes, rows, place, lambda sentence: status.update(sentence))
