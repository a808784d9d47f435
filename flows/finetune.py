"""finetune: a base model and conversations, to a model that answers, compared with its base."""

from flows.pretrain import nodes_of, prepare_text
from flows.recipe.recipe import FinetuneRecipe, Recipe
from flows.runs.base import Base
from model.errors import InputError
from tasks.benchmarks.index_benchmarks import IndexBenchmarksConfig, index_benchmarks
from tasks.engine.stage import Node, topological
from tasks.evaluation.compare_answers import compare_answers
from tasks.evaluation.evaluate_answers import evaluate_answers
from tasks.evaluation.evaluate_held_out import evaluate_held_out
from tasks.evaluation.evaluate_model import evaluate_model
from tasks.text.decontaminate import decontaminate
from tasks.text.deduplicate_conversations import deduplicate_conversations
from tasks.text.read_conversations import read_conversations
from tasks.text.split import split
from tasks.tokens.tokenize_conversations import TokenizeConversationsConfig, tokenize_conversations
from tasks.training.continue_training import ContinueTrainingConfig, continue_training
from tasks.training.export_tuned_model import export_tuned_model
from tasks.training.finetune_model import FinetuneModelConfig, finetune_model
from tasks.training.finetune_settings import check_batch
from tasks.training.reference_log_probabilities import (
    ReferenceLogProbabilitiesConfig,
    reference_log_probabilities,
)
from tasks.training.settings import check_stage


def graph(recipe: FinetuneRecipe, base: Base) -> list[Node]:
    """The stages of a recipe, each after what it reads. Nothing runs.

    Raises:
        InputError: if the base cannot do what the recipe asks for.
    """
    nodes = _learn_text(recipe, base) if recipe.ingest else _learn_answers(recipe, base)
    scores = [
        evaluate_model(recipe.evaluate_model, model=base.exported).named("base_benchmarks"),
        evaluate_model(recipe.evaluate_model, model=nodes[-1]),
    ]
    return topological([base.exported, base.model, base.tokenizer, *nodes, *scores])


def _check(recipe: FinetuneRecipe, base: Base, windows_per_row: int = 1) -> None:
    """Refuse adapters that the base has no place for, and a ZeRO stage that is not for such a training."""
    if recipe.finetune.adapter:
        recipe.finetune.adapter.check_targets(base.shape)
    check_stage(recipe.finetune.dtype, recipe.machine, windows_per_row, "finetune")


_LONGEST_WINDOW = 4096
"""Of training, unless the recipe says otherwise: bases with a context of 131,072 tokens are tuned on what is shorter."""


def _window_length(recipe: FinetuneRecipe, base: Base, windows_per_row: int = 1) -> int:
    """Tokens of a training window.

    Args:
        windows_per_row: windows that stay together in a batch: two for preferences.

    Raises:
        InputError: if the base cannot read so many, or if a batch is not made of whole rows of them.
    """
    length = recipe.context_length or min(base.shape.context_length, _LONGEST_WINDOW)
    if length > base.shape.context_length:
        raise InputError(
            f"context_length ({length}) is more than the base's ({base.shape.context_length}): lower it, or leave it out"
        )
    check_batch(recipe.finetune, length * windows_per_row)
    return length


def _learn_text(recipe: FinetuneRecipe, base: Base) -> list[Node]:
    """Continued pre-training; the last node is the exported model."""
    weight = recipe.finetune.replay_weight
    if weight and not base.text:
        raise InputError(
            f"finetune.replay_weight is {weight}, and the text that the base was trained on is not in the store: set it to 0, "
            "or take a run of scratchlm as base"
        )
    _check(recipe, base)
    context_length = _window_length(recipe, base)
    assert recipe.ingest is not None
    shared = Recipe.model_fields.keys() & FinetuneRecipe.model_fields.keys() - {
        "name",
        "machine",
        "export_model",
    }
    text = prepare_text(
        Recipe.model_validate({name: getattr(recipe, name) for name in sorted(shared)}), base.tokenizer
    )
    config = ContinueTrainingConfig(
        finetune=recipe.finetune, replay_weight=weight, context_length=context_length
    )
    replay = {"replay": base.text["tokenize"]} if weight else {}
    tuned = continue_training(config, base=base.model, tokens=text.tokens, tokenizer=base.tokenizer, **replay)
    exported = export_tuned_model(recipe.export_model, model=tuned, tokenizer=base.tokenizer).named(
        "export_model"
    )

    def held_out(label: str, model: Node, documents: Node, selection: Node) -> Node:
        return evaluate_held_out(model=model, documents=documents, selection=selection).named(label)

    nodes = [*nodes_of(text), *replay.values(), tuned]
    for label, model in (("base_on_new_text", base.exported), ("evaluate_held_out", exported)):
        nodes.append(held_out(label, model, text.documents, text.selection))
    if base.text:
        old = base.text["ingest"], base.text["split"]
        nodes += [
            *old,
            held_out("base_on_old_text", base.exported, *old),
            held_out("tuned_on_old_text", exported, *old),
        ]
    return [*nodes, exported]


def _learn_answers(recipe: FinetuneRecipe, base: Base) -> list[Node]:
    """Conversations or preferences; the last node is the exported model."""
    assert recipe.read_conversations is not None
    kind = recipe.read_conversations.kind
    windows_per_row = 2 if kind == "preferences" else 1
    _check(recipe, base, windows_per_row)
    context_length = _window_length(recipe, base, windows_per_row)
    # What is learnt, and what is held out.
    conversations = read_conversations(recipe.read_conversations)
    duplicates = deduplicate_conversations(documents=conversations)
    index = index_benchmarks(IndexBenchmarksConfig.of(recipe.index_benchmarks, recipe.evaluate_model))
    contaminated = decontaminate(documents=conversations, index=index)
    selection = split(recipe.split, documents=conversations, duplicates=duplicates, contaminated=contaminated)
    tokens = tokenize_conversations(
        TokenizeConversationsConfig(context_length=context_length, **dict(recipe.tokenize_conversations)),
        documents=conversations,
        selection=selection,
        tokenizer=base.tokenizer,
    )

    # Training, beside a reference if there are preferences.
    reference = {}
    if kind == "preferences":
        how = ReferenceLogProbabilitiesConfig(
            context_length=context_length,
            dtype=recipe.finetune.dtype,
            base=recipe.finetune.held_base,
        )
        reference = {"reference": reference_log_probabilities(how, tokens=tokens, base=base.model)}
    config = FinetuneModelConfig(finetune=recipe.finetune, context_length=context_length, objective=kind)
    tuned = finetune_model(config, base=base.model, tokens=tokens, tokenizer=base.tokenizer, **reference)
    with_template = recipe.export_model.model_copy(update={"chat": True})
    exported = export_tuned_model(with_template, model=tuned, tokenizer=base.tokenizer).named("export_model")

    # The same questions to both.
    def answers(label: str, model: Node) -> Node:
        asked = evaluate_answers(
            recipe.evaluate_answers, model=model, documents=conversations, selection=selection
        )
        return asked.named(label)

    before, after = answers("base_answers", base.exported), answers("evaluate_answers", exported)
    nodes = [conversations, duplicates, index, contaminated, selection, tokens, *reference.values(), tuned]
    return [*nodes, before, after, compare_answers(base=before, tuned=after), exported]
