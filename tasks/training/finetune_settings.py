"""What a base is trained further with: the section finetune of a recipe, and how it becomes steps of the trainer."""

import json
from pathlib import Path
from typing import Literal, Self

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

Keep = Literal["best", "last"]


class FinetuneConfig(OptimizationConfig):
    """How the base is trained further. Adapters need the optimizer adamw."""

    epochs: float | None = Field(
        None,
        gt=0,
        description="Times that every conversation, or the text, is trained on; if empty 3, and on little text up to 15, until "
        "there are 50 steps.",
    )
    tokens_per_batch: int | None = Field(
        None,
        ge=8,
        description="Tokens in one optimizer step, in tokens; a multiple of the context length, of twice that for preferences. "
        "If empty, at most 4,096, and so few that there are 50 steps, if the text has as many windows.",
    )
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
    learning_rate: LearningRate | None = Field(  # type: ignore[assignment]
        None,
        description="Peak AdamW learning rate; if empty, 2e-4 at a width of 768 features, and more for narrower bases, in "
        "inverse proportion (Yang et al. 2022, arXiv 2203.03466, table 3).",
    )
    muon_learning_rate: MuonLearningRate = 1e-3
    gradient_clipping: GradientClipping = 1.0
    warmup_fraction: WarmupFraction = 0.05
    evaluations: Evaluations = 4
    keep: Keep | None = Field(  # type: ignore[assignment]
        None,
        description="Which weights are kept, as in train_model. If empty, the best for text, and the last for conversations: the "
        "few answers that are held out say less of a model than having seen all others says for it.",
    )

    @property
    def held_base(self) -> Literal["full", "nf4"]:
        """How the frozen matrices are held; full where none is frozen."""
        return self.adapter.base if self.adapter else "full"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.adapter and self.optimizer == "muon":
            raise ValueError(
                "optimizer muon is for whole matrices, and adapter trains parts of them: set optimizer to adamw"
            )
        return self


_STEPS, _EPOCHS, _MOST_EPOCHS, _TOKENS_PER_BATCH = 50, 3.0, 15.0, 4096
"""What becomes of fields that are empty: fewer steps than these learn little, whatever the rate."""


def check_batch(config: FinetuneConfig, row_tokens: int) -> None:
    """Refuse a batch that is no whole number of rows of so many tokens.

    Raises:
        InputError: naming the field and the mend.
    """
    if config.tokens_per_batch and config.tokens_per_batch % row_tokens:
        raise InputError(
            f"finetune.tokens_per_batch ({config.tokens_per_batch}) must be a multiple of {row_tokens} tokens, the windows of "
            "a row: take another, or leave it out"
        )


def steps_for(
    config: FinetuneConfig,
    n_rows: float,
    row_tokens: int,
    d_model: int,
    keep: Keep = "best",
    most_rows: int | None = None,
) -> TrainConfig:
    """The trainer's configuration for a text of so many rows: its epochs, rounded to whole steps, and its rate.

    Args:
        n_rows: rows of one epoch.
        row_tokens: tokens of a row: the context length, twice that for preferences.
        d_model: width of the base.
        keep: which weights are kept if the recipe leaves it open.
        most_rows: of a batch whose size the recipe leaves open.

    Raises:
        InputError: if a batch is no whole number of rows.
    """
    check_batch(config, row_tokens)
    epochs = config.epochs or max(_EPOCHS, min(_MOST_EPOCHS, _STEPS / max(1.0, n_rows)))
    fitting = min(_TOKENS_PER_BATCH // row_tokens, int(epochs * n_rows / _STEPS))
    fitting = max(1, fitting if most_rows is None else min(fitting, most_rows))
    fitting = 2 ** (fitting.bit_length() - 1)  # so that two, four, eight ranks can share it
    rows_per_batch = config.tokens_per_batch // row_tokens if config.tokens_per_batch else fitting
    tokens_per_batch = rows_per_batch * row_tokens
    fields = config.model_dump(include=set(OptimizationConfig.model_fields))
    if config.learning_rate is None:
        fields["learning_rate"] = 2e-4 * 768 / d_model
    fields["keep"] = config.keep or keep
    return TrainConfig(
        tokens=max(1, round(epochs * n_rows / rows_per_batch)) * tokens_per_batch,
        tokens_per_batch=tokens_per_batch,
        decay_fraction=1 - config.warmup_fraction,
        **fields,
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
    from model.weights import folder_digest

    described = {"adapter": adapter.model_dump(mode="json"), "base_sha256": folder_digest(base)}
    (out / "adapter.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
