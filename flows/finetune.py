"""finetune: a base model and conversations, to a model that answers, compared with its base."""

import json
from dataclasses import dataclass
from pathlib import Path

from flows.recipe import FinetuneRecipe
from flows.runs import Run, find_model, finished_runs
from model.config import ModelConfig
from tasks.compare_answers import CompareAnswersConfig, compare_answers
from tasks.continue_training import continue_training
from tasks.decontaminate import decontaminate
from tasks.deduplicate_conversations import DeduplicateConversationsConfig, deduplicate_conversations
from tasks.errors import InputError
from tasks.evaluate_answers import evaluate_answers
from tasks.evaluate_model import evaluate_model
from tasks.export_model import export_model
from tasks.finetune_model import FinetuneModelConfig, finetune_model
from tasks.hugging_face import model_config_of
from tasks.import_model import ImportModelConfig, import_model
from tasks.index_benchmarks import IndexBenchmarksConfig, index_benchmarks
from tasks.read_conversations import read_conversations
from tasks.reference_log_probabilities import ReferenceLogProbabilitiesConfig, reference_log_probabilities
from tasks.snapshot_model import SnapshotModelConfig, snapshot_model
from tasks.split import split
from tasks.stage import Node
from tasks.store.store import Store
from tasks.tokenize_conversations import TokenizeConversationsConfig, tokenize_conversations
from tasks.train_model import train_model
from tasks.train_tokenizer import train_tokenizer

_STAGES = {
    stage.name: stage for stage in (train_model, continue_training, finetune_model, train_tokenizer, import_model, export_model)
}


@dataclass(frozen=True)
class Base:
    """The model to go on from."""

    model: Node
    tokenizer: Node
    exported: Node
    shape: ModelConfig


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
        return Base(imported, imported, exported, shape)
    run = _find_base(name, store)
    stages = run.record["stages"]

    def kept(label: str, *names: str) -> tuple[Node, Path]:
        found = run.stored(store, next((name for name in names if name in stages), names[0]))
        return _STAGES[found.manifest.stage].result(found.manifest.key, label), found.out

    model, folder = kept("base_model", "finetune_model", "train_model")
    tokenizer, _ = kept("base_tokenizer", "train_tokenizer", "base_tokenizer", "base_model")
    exported, _ = kept("base_export", "export_model")
    description = json.loads((folder / "model.json").read_text())
    return Base(model, tokenizer, exported, ModelConfig.model_validate(description["model"]))


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
        InputError: if there is no such base, or its context is shorter than the recipe's.
    """
    base = open_base(recipe.base, store)
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
    scores = [
        evaluate_model(benchmarks, model=base.exported).named("base_benchmarks"),
        evaluate_model(benchmarks, model=exported),
    ]
    nodes = [base.exported, base.model, base.tokenizer, conversations, duplicates, index, contaminated, selection, tokens]
    return list(dict.fromkeys([*nodes, *extra, tuned, exported, before, after, compared, *scores]))
