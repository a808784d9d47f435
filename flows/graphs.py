"""Which graph a recipe, or an earlier run, means: what the graphs need of the store is looked up here."""

from flows import ablate, evaluate, finetune, pretrain, retrain
from flows.recipe.recipe import AnyRecipe, FinetuneRecipe, Recipe
from flows.runs.accept import check_accept
from flows.runs.base import model_node, open_base
from flows.runs.execute import Place
from flows.runs.record import ABLATE, Run, load_run, runs_folder
from tasks.benchmarks.items import prepare_benchmarks
from tasks.engine.stage import Node
from tasks.engine.store import Store
from tasks.evaluation.evaluate_model import EvaluateModelConfig


def graph_of(recipe: AnyRecipe, store: Store) -> list[Node]:
    """The stages of a recipe, each after what it reads. Nothing runs.

    Raises:
        InputError: if a base is not there, or cannot do what the recipe asks for.
    """
    if isinstance(recipe, Recipe):
        return pretrain.graph(recipe)
    return finetune.graph(recipe, open_base(recipe.base, store))


def prepare_run(recipe: AnyRecipe, place: Place) -> list[Node]:
    """The graph of a recipe, once all that can be known beforehand is right.

    Raises:
        InputError: if a base, a benchmark or a stage to accept does not exist, or the machine cannot train the model.
    """
    nodes = graph_of(recipe, place.store)
    check_accept(place.accept, nodes)
    prepare_benchmarks(recipe.evaluate_model)
    return nodes


def recipe_and_graph_of_run(run: Run, store: Store) -> tuple[AnyRecipe | None, list[Node]]:
    """What an earlier run was asked for, and the graph that it had; an evaluation has no recipe."""
    record = run.record
    if record["flow"] == "evaluate":
        config = EvaluateModelConfig.model_validate(record["recipe"]["evaluate_model"])
        return None, evaluate.graph(model_node(record["model"], store), config)
    kind: type[AnyRecipe] = FinetuneRecipe if record["flow"] == "finetune" else Recipe
    recipe = kind.model_validate({**record["recipe"], "machine": record["machine"]})
    if isinstance(recipe, Recipe) and record["flow"] == ABLATE:
        return recipe, ablate.graph(recipe, record["without"], record["seeds"])
    if isinstance(recipe, Recipe) and record["flow"] == "retrain":
        champion = load_run(runs_folder(store) / record["champion"]) if record["champion"] else None
        return recipe, retrain.graph(recipe, champion)
    return recipe, graph_of(recipe, store)
