"""finetune_model: go on from a base model on conversations or preference pairs, with all weights or with adapters."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from model.base_config import Config
from model.objectives.conversations import ConversationObjective
from model.objectives.preferences import PreferenceObjective
from model.tokens import open_tokens
from tasks.engine.machine import Machine
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.training.finetune_settings import FinetuneConfig, base_shape, describe_adapter, steps_for
from tasks.training.quantizer import quantizer_version
from tasks.training.reference import REFERENCE
from tasks.training.settings import TrainModelConfig
from tasks.training.train_on_ranks import train_on_ranks


class FinetuneModelConfig(Config):
    """The section finetune of a recipe, and what follows from its base and its data."""

    finetune: FinetuneConfig
    context_length: int = Field(ge=8, description="Length of a training window, in tokens.")
    objective: Literal["conversations", "preferences"]


@stage(
    libraries=("torch", "deepspeed", "numpy", "pyarrow", "xxhash", "safetensors", "tokenizers", "peft"),
    retries=2,
    role="train",
    fingerprint=lambda config, digests: quantizer_version(config.finetune.held_base),
)
def finetune_model(
    config: FinetuneModelConfig,
    base: Artifact,
    tokens: Artifact,
    tokenizer: Artifact,
    out: Path,
    work: Path,
    machine: Machine,
    reference: Artifact | None = None,
) -> Metrics:
    """Write what train_model writes, with adapters merged; then also adapter.safetensors and adapter.json.

    Args:
        base: a trained or imported model.
        tokens: result of tokenize_conversations.
        tokenizer: that of the base.
        reference: result of reference_log_probabilities, for preferences.

    Raises:
        InputError: if the tokenizer is not the base's, or text and machine do not fit the recipe.
    """
    shape, digest = base_shape(base, tokenizer)
    chosen = config.finetune
    objective: ConversationObjective | PreferenceObjective = ConversationObjective()
    if config.objective == "preferences":
        assert reference is not None, "a graph with preferences has reference_log_probabilities"
        objective = PreferenceObjective(beta=chosen.beta, reference=reference.path / REFERENCE)

    row = config.context_length * objective.windows_per_row
    shards = [open_tokens(path / "train.arrow", digest) for path in tokens.shards]
    n_rows = len(objective.open_rows(shards, config.context_length))
    # Of preferences, too: the chosen side of a pair may well become less likely, as long as the other one does so more.
    train = steps_for(chosen, n_rows, row, shape.d_model, keep="last")
    windows = shape.model_copy(update={"context_length": config.context_length})
    metrics = train_on_ranks(
        TrainModelConfig(model=windows, train=train),
        objective,
        tokens,
        tokenizer,
        out,
        work,
        machine,
        start=base.path,
        adapter=chosen.adapter,
        model_context_length=shape.context_length,
        section="finetune",
    )
    if chosen.adapter:
        describe_adapter(chosen.adapter, base.path, out)
    return metrics | {"rows": n_rows, "conversations": sum(shard.header.n_documents for shard in shards)}
