"""finetune: a base model and conversations, to a model that answers, compared with its base."""

import json
from dataclasses import dataclass
from pathlib import Path

from flows.pretrain import nodes_of, prepare_text
from flows.recipe import FinetuneRecipe, Recipe
from flows.runs import Run, find_model, finished_runs
from model.config import ModelConfig
from tasks.adapt_model import AdaptModelConfig, adapt_model
from tasks.compare_answers import CompareAnswersConfig, compare_answers
from tasks.continue_training import continue_training
from tasks.decontaminate import decontaminate
from tasks.deduplicate_conversations import DeduplicateConversationsConfig, deduplicate_conversations
from tasks.errors import InputError
from tasks.evaluate_answers import evaluate_answers
from tasks.evaluate_held_out import EvaluateHeldOutConfig, evaluate_held_out
from tasks.evaluate_model import evaluate_model
from tasks.export_model import export_model
from tasks.finetune_model import FinetuneModelConfig, finetune_model
from tasks.hugging_face import model_config_of
from tasks.import_model import ImportModelConfig, import_model
from tasks.index_benchmarks import IndexBenchmarksConfig, index_benchmarks
from tasks.ingest import ingest
from tasks.read_conversations import read_conversations
from tasks.reference_log_probabilities import ReferenceLogProbabilitiesConfig, reference_log_probabilities
from tasks.snapshot_model import SnapshotModelConfig, snapshot_model
from tasks.split import split
from tasks.stage import Node, topological
from tasks.store.store import Store
from tasks.tokenize import tokenize
from tasks.tokenize_conversations import TokenizeConversationsConfig, tokenize_conversations
from tasks.train_model import train_model
from tasks.train_tokenizer import train_tokenizer

_TEXT = ("ingest", "split", "tokenize")
_STAGES = {
    stage.name: stage
    for stage in (
        train_model, continue_training, finetune_model, adapt_model, train_tokenizer, import_model, export_model, ingest, split, tokenize,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """The model to go on from."""

    model: Node
    tokenizer: Node
    exported: Node
    shape: ModelConfig
    text: dict[str, Node]
    """What a run was trained on: documents, selection and tokens; empty for a folder."""


def open_base(name: str, store: Store) -> Base:
    """The nodes of a base model: of an earlier run, or of a Hugging Face folder.

    Raises:
        InputError: if it is neither, or cannot be ours.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        try:
            fields = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f"base: {folder / 'config.json'} cannot be read: give a run, or the folder of a Hugging Face model"
            ) from error
        shape = model_config_of(fields, f"base: {folder / 'config.json'}")
        exported = snapshot_model(SnapshotModelConfig(path=name)).named("base_folder")
        imported = import_model(ImportModelConfig(), folder=exported).named("base_model")
        return Base(imported, imported, exported, shape, {})
    run = _find_base(name, store)
    stages = run.record["stages"]

    def kept(label: str, *names: str) -> tuple[Node, Path]:
        found = run.stored(store, next((name for name in names if name in stages), names[0]))
        return _STAGES[found.manifest.stage].result(found.manifest.key, label), found.out

    model, folder = kept("base_model", "finetune_model", "adapt_model", "train_model")
    tokenizer, _ = kept("base_tokenizer", "train_tokenizer", "base_tokenizer", "base_model")
    exported, _ = kept("base_export", "export_model")
    description = json.loads((folder / "model.json").read_text())
    text = {}
    if all(name in stages for name in _TEXT):
        text = {name: kept(f"base_{name}", name)[0] for name in _TEXT}
    return Base(model, tokenizer, exported, ModelConfig.model_validate(description["model"]), text)


def _find_base(name: str, store: Store) -> Run:
    """The run that a base names. A fine-tuning is never what `latest` means: run again, it would go on from its own result."""
    if name == "latest":
        for run in finished_runs(store):
            if run.record.get("flow", "pretrain") in ("pretrain", "retrain"):
                return run
    try:
        return find_model(store, name)
    except InputError as error:
        raise InputError(f"base: {error}; and there is no folder {name!r}") from None


def graph(recipe: FinetuneRecipe, store: Store) -> list[Node]:
    """The stages of a recipe, each after what it reads. Nothing runs.

    Raises:
        InputError: if there is no such base, or it cannot do what the recipe asks for.
    """
    base = open_base(recipe.base, store)
    nodes = _learn_text(recipe, base) if recipe.ingest else _learn_answers(recipe, base)
    scores = [
        evaluate_model(recipe.evaluate_model, model=base.exported).named("base_benchmarks"),
        evaluate_model(recipe.evaluate_model, model=nodes[-1]),
    ]
    return topological([base.exported, base.model, base.tokenizer, *nodes, *scores])


def _learn_text(recipe: FinetuneRecipe, base: Base) -> list[Node]:
    """Continued pre-training; the last node is the exported model."""
    weight = recipe.finetune.replay_weight
    if weight and not base.text:
        raise InputError(
            f"finetune.replay_weight is {weight}, and the text that the base was trained on is not in the store: set it to 0, "
            "or take a run of scratchlm as base"
        )
    if recipe.context_length not in (None, base.shape.context_length):
        raise InputError(
            f"context_length is {recipe.context_length}, and text is learnt in the base's ({base.shape.context_length}): leave it out"
        )
    assert recipe.ingest is not None
    shared = ("ingest", "clean", "minhash", "index_benchmarks", "decontaminate", "split", "evaluate_model")
    text = prepare_text(Recipe.model_validate({name: getattr(recipe, name) for name in shared}), base.tokenizer)
    config = AdaptModelConfig(**dict(recipe.finetune))
    replay = base.text["tokenize"] if weight else text.tokens
    tuned = adapt_model(config, base=base.model, tokens=text.tokens, replay=replay, tokenizer=base.tokenizer)
    exported = export_model(recipe.export_model, model=tuned, tokenizer=base.tokenizer)

    def held_out(label: str, model: Node, documents: Node, selection: Node) -> Node:
        return evaluate_held_out(EvaluateHeldOutConfig(), model=model, documents=documents, selection=selection).named(label)

    nodes = [*nodes_of(text), *([replay] if weight else []), tuned]
    for label, model in (("base_on_new_text", base.exported), ("evaluate_held_out", exported)):
        nodes.append(held_out(label, model, text.documents, text.selection))
    if base.text:
        old = base.text["ingest"], base.text["split"]
        nodes += [*old, held_out("base_on_old_text", base.exported, *old), held_out("tuned_on_old_text", exported, *old)]
    return [*nodes, exported]


def _learn_answers(recipe: FinetuneRecipe, base: Base) -> list[Node]:
    """Conversations or preferences; the last node is the exported model."""
    assert recipe.read_conversations is not None
    context_length = recipe.context_length or min(base.shape.context_length, 4096)
    if context_length > base.shape.context_length:
        raise InputError(
            f"context_length ({context_length}) is more than the base's ({base.shape.context_length}): lower it, or leave it out"
        )
    benchmarks = recipe.evaluate_model
    conversations = read_conversations(recipe.read_conversations)
    duplicates = deduplicate_conversations(DeduplicateConversationsConfig(), documents=conversations)
    index = index_benchmarks(
        IndexBenchmarksConfig(tasks=benchmarks.tasks, data=benchmarks.data, **recipe.index_benchmarks.model_dump())
    )
    contaminated = decontaminate(recipe.decontaminate, documents=conversations, index=index)
    selection = split(recipe.split, documents=conversations, duplicates=duplicates, contaminated=contaminated)
    tokens = tokenize_conversations(
        TokenizeConversationsConfig(context_length=context_length, max_too_long=recipe.tokenize_conversations.max_too_long),
        documents=conversations, selection=selection, tokenizer=base.tokenizer,
    )  # fmt: skip
    reference, extra = tokens, []
    if recipe.read_conversations.kind == "preferences":
        reference = reference_log_probabilities(
            ReferenceLogProbabilitiesConfig(context_length=context_length), tokens=tokens, base=base.model
        )
        extra.append(reference)
    config = FinetuneModelConfig(
        finetune=recipe.finetune, context_length=context_length, objective=recipe.read_conversations.kind
    )
    tuned = finetune_model(config, base=base.model, tokens=tokens, tokenizer=base.tokenizer, reference=reference)
    exported = export_model(recipe.export_model.model_copy(update={"chat": True}), model=tuned, tokenizer=base.tokenizer)

    def answers(label: str, model: Node) -> Node:
        return evaluate_answers(recipe.evaluate_answers, model=model, documents=conversations, selection=selection).named(label)

    before, after = answers("base_answers", base.exported), answers("evaluate_answers", exported)
    compared = compare_answers(CompareAnswersConfig(), base=before, tuned=after)
    nodes = [conversations, duplicates, index, contaminated, selection, tokens]
    return [*nodes, *extra, tuned, before, after, compared, exported]
