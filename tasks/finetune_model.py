"""finetune_model: go on from a base model on conversations or preference pairs, with all weights or with adapters."""

import json
import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from model.base_config import Config
from model.config import AdapterConfig, ModelConfig, TrainConfig
from tasks.errors import InputError
from tasks.machine import Machine
from tasks.reference_log_probabilities import REFERENCE
from tasks.stage import Artifact, Metrics, stage
from tasks.train_model import TrainModelConfig, train_under_torchrun
from tasks.train_tokenizer import tokenizer_sha256


class FinetuneConfig(Config):
    """How the base is trained further."""

    epochs: float = Field(3.0, gt=0, description="Times that every conversation is trained on.")
    tokens_per_batch: int = Field(
        4096,
        ge=8,
        description="Places in one optimizer step, in tokens; a multiple of the context, of twice the context for preferences.",
    )
    adapter: AdapterConfig | None = Field(
        None, description="Train adapters of this shape and freeze the base; all weights if empty."
    )
    replay_weight: float = Field(
        0.3, ge=0, lt=1, description="Share of the windows that come from the base's own text; used for text only."
    )
    beta: float = Field(0.1, gt=0, description="DPO: how strongly the model is held to the base; used for preferences only.")
    optimizer: Literal["muon", "adamw"] = Field("adamw", description="As in train_model; adapters need adamw.")
    learning_rate: float = Field(2e-4, gt=0, description="Peak AdamW learning rate.")
    muon_learning_rate: float = Field(1e-3, gt=0, description="Peak Muon learning rate; used by muon only.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of matrices.")
    gradient_clipping: float = Field(1.0, ge=0, description="Largest global gradient norm; 0 clips nothing.")
    warmup_fraction: float = Field(0.05, ge=0, le=1, description="Share of the steps in which the rate rises linearly.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Compute type, as in train_model.")
    evaluations: int = Field(4, ge=0, description="Times that the loss of held-out answers is measured while it trains.")
    evaluation_tokens: int = Field(
        32_768, ge=1, description="Held-out tokens that each of these measurements reads, in tokens."
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the adapters' first weights and of the order of the conversations."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.adapter and self.optimizer == "muon":
            raise ValueError("optimizer muon is for whole matrices, and adapter trains parts of them: set optimizer to adamw")
        return self


class FinetuneModelConfig(Config):
    """The section finetune of a recipe, and what follows from its base and its data."""

    finetune: FinetuneConfig
    context_length: int = Field(ge=8, description="Length of a training window, in tokens.")
    objective: Literal["conversations", "preferences"]


def train_config(config: FinetuneModelConfig, n_rows: int) -> TrainConfig:
    """Epochs as whole steps of the trainer.

    Raises:
        InputError: if tokens_per_batch does not fit the context.
    """
    chosen = config.finetune
    row = config.context_length * (2 if config.objective == "preferences" else 1)
    if chosen.tokens_per_batch % row:
        raise InputError(
            f"finetune.tokens_per_batch ({chosen.tokens_per_batch}) must be a multiple of {row}, "
            f"{'two windows' if config.objective == 'preferences' else 'one window'} of the context of {config.context_length} tokens"
        )
    return whole_steps(chosen, chosen.epochs * n_rows * row)


def whole_steps(config: FinetuneConfig, places: float) -> TrainConfig:
    """The trainer's configuration for so many places, in tokens, rounded up to whole steps."""
    n_steps = max(1, math.ceil(places / config.tokens_per_batch))
    fields = config.model_dump(include=set(TrainConfig.model_fields))
    return TrainConfig(tokens=n_steps * config.tokens_per_batch, decay_fraction=1 - config.warmup_fraction, **fields)


def base_shape(base: Artifact, tokenizer: Artifact) -> tuple[ModelConfig, str]:
    """Shape of the base, and the digest of the tokenizer.

    Raises:
        InputError: if the tokenizer is not the base's.
    """
    description = json.loads((base.path / "model.json").read_text())
    digest = tokenizer_sha256(tokenizer.path)
    if description["tokenizer_sha256"] != digest:
        raise InputError("the tokenizer is not the one that the base was trained with: take that of the base")
    return ModelConfig.model_validate(description["model"]), digest


@stage(libraries=("torch", "deepspeed", "numpy", "pyarrow", "xxhash", "safetensors", "tokenizers", "peft"), retries=2)
def finetune_model(
    config: FinetuneModelConfig, base: Artifact, tokens: Artifact, tokenizer: Artifact, reference: Artifact,
    out: Path, work: Path, machine: Machine,
) -> Metrics:  # fmt: skip
    """Write what train_model writes, with adapters merged; then also adapter.safetensors and adapter.json.

    Args:
        base: a trained or imported model.
        tokens: result of tokenize_conversations.
        tokenizer: that of the base.
        reference: result of reference_log_probabilities for preferences; the tokens again for conversations.

    Raises:
        InputError: if the tokenizer is not the base's, or text and machine do not fit the recipe.
    """
    import numpy as np

    from model.conversations import PackedConversations, documents_of
    from model.tokens import open_tokens

    shape, digest = base_shape(base, tokenizer)
    model = shape.model_copy(update={"context_length": config.context_length})
    documents = documents_of([open_tokens(path / "train.arrow", digest) for path in tokens.shards])
    start: dict[str, Any] = {"start": base.path, "adapter": config.finetune.adapter, "objective": config.objective}
    if config.objective == "preferences":
        n_rows = len(documents) // 2
        found = [np.load(path / REFERENCE) for path in reference.shards]
        np.save(work / REFERENCE, np.concatenate(found))
        start |= {"reference": work / REFERENCE, "beta": config.finetune.beta}
    else:
        n_rows = len(PackedConversations(documents, config.context_length))
    training = TrainModelConfig(model=model, train=train_config(config, n_rows))
    figures = train_under_torchrun(training, tokens, tokenizer, out, work, machine, **start)
    if config.finetune.adapter:
        describe_adapter(out, config.finetune.adapter, base.path)
    return figures | {"rows": n_rows, "conversations": len(documents)}


def describe_adapter(out: Path, adapter: AdapterConfig, base: Path) -> None:
    """Write adapter.json: the shape of the adapters, and the digest of the base that they belong to."""
    from model.weights import load_model, weights_digest

    described = {"adapter": adapter.model_dump(mode="json"), "base_sha256": weights_digest(load_model(base)[0])}
    (out / "adapter.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
