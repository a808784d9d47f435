"""retrain: pretrain on the text that is there now, and promote only what is better than the champion."""

from typing import Any

from flows.pretrain import Model, Text, make_model, nodes_of, prepare_text, train_from_scratch
from flows.recipe.recipe import Recipe
from flows.runs.record import Run
from model.errors import InputError
from tasks.engine.stage import Node
from tasks.evaluation.compare_models import CompareModelsConfig, compare_models
from tasks.evaluation.evaluate_held_out import evaluate_held_out
from tasks.evaluation.evaluate_model import evaluate_model
from tasks.text.find_new import find_new
from tasks.training.continue_training import ContinueTrainingConfig, continue_training

NOTHING_NEW, PROMOTED, REFUSED, DECLINED = "Nothing new", "Promoted", "Refused", "Declined"
ENDS = (NOTHING_NEW, PROMOTED, REFUSED, DECLINED)
"""How a retraining ends: the name of its state, and the verdict that it returns."""

MIN_DOCUMENTS = 3
"""Held-out documents of each kind below which an interval says nothing."""


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be retrained.

    Raises:
        InputError: unless the split is by hash.
    """
    if recipe.split.validation_ids or recipe.split.validation_source:
        raise InputError(
            "retrain needs a split by hash, so that new text has held-out documents too and none ever changes its side: "
            "in the section split, set validation_fraction instead of validation_ids or validation_source"
        )


def graph(recipe: Recipe, champion: Run | None) -> list[Node]:
    """Pretraining with what is kept of the champion, and the comparison with it. Nothing runs."""
    if champion is None:
        text = prepare_text(recipe)
        return nodes_of(text) + nodes_of(make_model(recipe, text))
    config = recipe.retrain
    tokenizer = champion.node("train_tokenizer", "train_tokenizer") if config.tokenizer == "keep" else None
    old_documents = champion.node("ingest", "champion_documents")
    old_selection = champion.node("split", "champion_selection")
    text = prepare_text(recipe, tokenizer, old_selection)
    old_model = champion.node("export_model", "champion")
    new = find_new(documents=text.documents, selection=text.selection, former=old_documents)
    kept = [old_documents, old_selection, old_model, new]
    train = train_from_scratch
    if config.start == "champion":
        weights = champion.node("train_model", "champion_weights")
        kept.append(weights)

        def train(recipe: Recipe, text: Text) -> Node:
            how = ContinueTrainingConfig(
                model=recipe.model, train=recipe.train_model, replay_weight=config.replay_weight
            )
            trained = continue_training(
                how, base=weights, tokens=text.tokens, tokenizer=text.tokenizer, new=new
            )
            return trained.named("train_model")

    model = make_model(recipe, text, train)
    compared = _comparison(recipe, text, model, old_model, old_documents, old_selection, new)
    return nodes_of(text) + kept + nodes_of(model) + compared


def _comparison(
    recipe: Recipe,
    text: Text,
    model: Model,
    champion: Node,
    old_documents: Node,
    old_selection: Node,
    new: Node,
) -> list[Node]:
    """Champion and challenger on old and new text and on the benchmarks; the last node is the verdict."""

    def held_out(label: str, of: Node, documents: Node, selection: Node) -> Node:
        return evaluate_held_out(model=of, documents=documents, selection=selection).named(label)

    champion_old = held_out("champion_on_old_text", champion, old_documents, old_selection)
    challenger_old = held_out("challenger_on_old_text", model.exported, old_documents, old_selection)
    champion_new = held_out("champion_on_text_of_now", champion, text.documents, text.selection)
    champion_scores = evaluate_model(recipe.evaluate_model, model=champion).named("champion_benchmarks")
    compared = compare_models(
        CompareModelsConfig(margin_bits_per_byte=recipe.retrain.margin_bits_per_byte),
        champion_old=champion_old,
        challenger_old=challenger_old,
        champion_new=champion_new,
        challenger_new=model.held_out,
        champion_scores=champion_scores,
        challenger_scores=model.evaluated,
        new=new,
    )
    return [champion_old, challenger_old, champion_new, champion_scores, compared]


class NothingNew(Exception):
    """There is too little new text to make or to judge a challenger."""


def check_judgeable(name: str, metrics: dict[str, Any]) -> None:
    """Stop a run that could not be judged, before it is trained.

    Raises:
        NothingNew: if too few of the new documents are held out.
    """
    if name == "find_new" and (metrics["validation"] < MIN_DOCUMENTS or not metrics["train"]):
        raise NothingNew(
            f"of the new documents {metrics['train']} are for training and {metrics['validation']} are held out; at least "
            f"{MIN_DOCUMENTS} held-out ones are needed to judge a challenger: wait for more text, "
            "or raise split.validation_fraction"
        )
