"""retrain: pretrain on the text that is there now, and promote only what is better than the champion."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.pretrain import Model, Text, make_model, nodes_of, prepare_text, train_from_scratch
from flows.recipe import Recipe, RetrainConfig
from flows.runs import Run, load_run, runs_folder
from tasks.compare_models import MIN_DOCUMENTS, CompareModelsConfig, compare_models
from tasks.continue_training import ContinueTrainingConfig, continue_training
from tasks.errors import InputError
from tasks.evaluate_held_out import EvaluateHeldOutConfig, evaluate_held_out
from tasks.evaluate_model import evaluate_model
from tasks.export_model import export_model
from tasks.find_new import FindNewConfig, find_new, known_digests
from tasks.ingest import fingerprint_sources, ingest, unread_records
from tasks.promote_model import read_champions
from tasks.split import split
from tasks.stage import Artifact, Node, Stage
from tasks.store.keys import canonical
from tasks.store.sources import SourceDigests
from tasks.store.store import Store
from tasks.train_model import train_model
from tasks.train_tokenizer import train_tokenizer

NOTHING_NEW, PROMOTED, REFUSED, DECLINED = "Nothing new", "Promoted", "Refused", "Declined"


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


def find_champion(recipe: Recipe, store: Store) -> Run | None:
    """The run that is the champion of this recipe's name; None if there is none yet.

    Raises:
        InputError: if its results are not in the store any more, or it was split in another way.
    """
    name = read_champions(store, recipe.name).champion
    if name is None:
        return None
    run = load_run(runs_folder(store) / name)
    if run.record["recipe"]["split"] != recipe.split.model_dump(mode="json"):
        raise InputError(
            f"the section split is not that of the champion {name}, so what was held out then may be trained on now: "
            "set it back, or give the recipe another name"
        )
    for stage in ("ingest", "split", "train_tokenizer", "train_model", "export_model"):
        run.stored(store, stage)
    return run


@dataclass(frozen=True)
class News:
    """What is new in the sources since the champion was made."""

    documents: int
    bytes: int
    age_days: float

    def __str__(self) -> str:
        return f"{self.documents:,} new documents with {self.bytes:,} bytes; the champion is {self.age_days:.1f} days old"

    def is_enough(self, config: RetrainConfig) -> bool:
        """Whether it is worth a training."""
        if not self.documents:
            return False
        too_old = config.max_age_days is not None and self.age_days >= config.max_age_days
        return too_old or self.documents >= config.min_new_documents or self.bytes >= config.min_new_bytes


def find_news(recipe: Recipe, champion: Run, store: Store, sources: SourceDigests) -> News:
    """Count the documents whose text the champion's ingest did not have. Reads changed and added files only."""
    stored = champion.stored(store, "ingest")
    age = datetime.now(UTC) - datetime.fromisoformat(champion.record["created"])
    before = stored.manifest.ingredients["source"]
    now = canonical(fingerprint_sources(recipe.ingest, sources))
    n_documents = n_bytes = 0
    if now != before:
        known = known_digests(Artifact(stored.out, stored.shard_paths))
        for digest, size in unread_records(recipe.ingest, before, now):
            if digest not in known:
                known.add(digest)
                n_documents, n_bytes = n_documents + 1, n_bytes + size
    return News(n_documents, n_bytes, age / timedelta(days=1))


def graph(recipe: Recipe, champion: Run | None) -> list[Node]:
    """Pretraining with what is kept of the champion, and the comparison with it. Nothing runs."""
    if champion is None:
        text = prepare_text(recipe)
        return nodes_of(text) + nodes_of(make_model(recipe, text))

    def kept(stage: Stage, name: str, label: str) -> Node:
        return stage.result(champion.record["stages"][name]["key"], label)

    config = recipe.retrain
    tokenizer = kept(train_tokenizer, "train_tokenizer", "train_tokenizer") if config.tokenizer == "keep" else None
    text = prepare_text(recipe, tokenizer)
    old_documents, old_selection = kept(ingest, "ingest", "champion_documents"), kept(split, "split", "champion_selection")
    old_model = kept(export_model, "export_model", "champion")
    new = find_new(FindNewConfig(), documents=text.documents, selection=text.selection, former=old_documents)
    extra = [old_documents, old_selection, old_model, new]
    train = train_from_scratch
    if config.start == "champion":
        stages = {stage.name: stage for stage in (train_model, continue_training)}
        start = kept(
            stages[champion.record["stages"]["train_model"].get("stage", "train_model")], "train_model", "champion_weights"
        )
        extra.append(start)

        def train(recipe: Recipe, text: Text) -> Node:
            shape = ContinueTrainingConfig(model=recipe.model, train=recipe.train_model, replay_weight=config.replay_weight)
            return continue_training(shape, start=start, tokens=text.tokens, tokenizer=text.tokenizer, new=new).named(
                "train_model"
            )

    model = make_model(recipe, text, train)
    return (
        nodes_of(text)
        + extra
        + nodes_of(model)
        + _comparison(recipe, text, model, old_model, old_documents, old_selection, new)
    )


def _comparison(
    recipe: Recipe, text: Text, model: Model, champion: Node, old_documents: Node, old_selection: Node, new: Node
) -> list[Node]:
    def held_out(label: str, of: Node, documents: Node, selection: Node) -> Node:
        return evaluate_held_out(EvaluateHeldOutConfig(), model=of, documents=documents, selection=selection).named(label)

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
            f"{MIN_DOCUMENTS} held-out ones are needed to judge a challenger: wait for more text, or raise split.validation_fraction"
        )
