"""What a base is trained further with: the section finetune of a recipe, and how it becomes steps of the trainer."""

import json
import math
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from model.adapters import LowRankAdapter
from model.config import (
    Evaluations,
    GradientClipping,
    LearningRate,
    ModelConfig,
    MuonLearningRate,
    OptimizationConfig,
    OptimizerName,
    TrainConfig,
    WarmupFraction,
)
from model.errors import InputError
from model.tokenizer import tokenizer_sha256
from tasks.engine.stage import Artifact


class FinetuneConfig(OptimizationConfig):
    """How the base is trained further. Adapters need the optimizer adamw."""

    epochs: float = Field(3.0, gt=0, description="Times that every conversation, or the text, is trained on.")
    adapter: LowRankAdapter | None = Field(
        None, description="Train adapters of this shape and freeze the base; all weights if empty."
    )
    replay_weight: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="Share of the windows that come from the base's own text; used for text only.",
    )
    beta: float = Field(
        0.1, gt=0, description="DPO: how strongly the model is held to the base; used for preferences only."
    )
    # Gentler than from scratch: the weights are good already.
    optimizer: OptimizerName = "adamw"
    learning_rate: LearningRate = 2e-4
    muon_learning_rate: MuonLearningRate = 1e-3
    gradient_clipping: GradientClipping = 1.0
    warmup_fraction: WarmupFraction = 0.05
    evaluations: Evaluations = 4

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.adapter and self.optimizer == "muon":
            raise ValueError(
                "optimizer muon is for whole matrices, and adapter trains parts of them: set optimizer to adamw"
            )
        return self


def whole_steps(config: FinetuneConfig, places: float) -> TrainConfig:
    """The trainer's configuration for so many places, in tokens, rounded up to whole steps."""
    n_steps = max(1, math.ceil(places / config.tokens_per_batch))
    fields = config.model_dump(include=set(OptimizationConfig.model_fields))
    return TrainConfig(
        tokens=n_steps * config.tokens_per_batch, decay_fraction=1 - config.warmup_fraction, **fields
    )


def base_shape(base: Artifact, tokenizer: Artifact) -> tuple[ModelConfig, str]:
    """Shape of a trained model, and the digest of its tokenizer.

    Raises:
        InputError: if the tokenizer is not that of the model.
    """
    description = json.loads((base.path / "model.json").read_text())
    digest = tokenizer_sha256(tokenizer.path)
    if description["tokenizer_sha256"] != digest:
        raise InputError("the tokenizer is not the one that the base was trained with")
    return ModelConfig.model_validate(description["model"]), digest


def describe_adapter(adapter: LowRankAdapter, base: Path, out: Path) -> None:
    """Write adapter.json: the shape of the adapters, and the digest of the base that they belong to."""
    from model.weights import load_model, weights_digest

    described = {
        "adapter": adapter.model_dump(mode="json"),
        "base_sha256": weights_digest(load_model(base)[0]),
    }
    (out / "adapter.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
