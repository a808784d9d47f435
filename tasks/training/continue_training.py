"""continue_training: go on from the weights of a model on new text, with old text replayed."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from model.base_config import Config
from model.batches import Windows
from model.config import ModelConfig, TrainConfig
from model.errors import InputError
from model.objectives.replayed_text import ReplayedTextObjective
from model.tokens import open_tokens
from tasks.engine.machine import Machine
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.text.new_documents import NEW
from tasks.training.finetune_settings import FinetuneConfig, base_shape, describe_adapter, steps_for
from tasks.training.quantizer import quantizer_version
from tasks.training.settings import TrainModelConfig, check_corpus
from tasks.training.train_on_ranks import train_on_ranks


class ContinueTrainingConfig(Config):
    """How long and at which rates: a number of tokens as from scratch, or epochs of the new text as in fine-tuning."""

    model: ModelConfig | None = Field(
        None, description="Shape that the earlier model must have; any if empty."
    )
    train: TrainConfig | None = Field(
        None, description="The section train_model of a recipe; either this or finetune."
    )
    finetune: FinetuneConfig | None = Field(
        None, description="The section finetune of a recipe; either this or train."
    )
    context_length: int | None = Field(
        None,
        ge=8,
        description="Length of a training window, in tokens; the context of the earlier model if empty.",
    )
    replay_weight: float = Field(ge=0, lt=1, description="Share of the windows that come from old text.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.train is None) == (self.finetune is None):
            raise ValueError("give either train or finetune")
        return self


def _check_sides(sides: dict[str, Windows], mend: str) -> None:
    """Refuse text that does not fill one window on a side.

    Raises:
        InputError: naming the side and the mend.
    """
    for what, windows in sides.items():
        if not len(windows):
            raise InputError(
                f"the {what} text has {windows.n_tokens} tokens for training, less than one window of the context "
                f"({windows.context_length}): {mend}"
            )


@stage(
    libraries=("torch", "deepspeed", "numpy", "pyarrow", "xxhash", "safetensors", "tokenizers", "peft"),
    retries=2,
    role="train",
    fingerprint=lambda config, digests: quantizer_version(
        config.finetune.held_base if config.finetune else "full"
    ),
)
def continue_training(
    config: ContinueTrainingConfig,
    base: Artifact,
    tokens: Artifact,
    tokenizer: Artifact,
    out: Path,
    work: Path,
    machine: Machine,
    replay: Artifact | None = None,
    new: Artifact | None = None,
) -> Metrics:
    """Write what train_model writes; with an adapter also adapter.safetensors and adapter.json, and it is merged.

    Args:
        base: the model to go on from.
        tokens: those of the text of now, made by the base's tokenizer.
        replay: those of old text; the documents of `tokens` that are not new if it is left out.
        new: result of find_new: which documents of `tokens` are new; all of them if it is left out.

    Raises:
        InputError: if the earlier model has another shape or tokenizer, or there is too little text on a side.
    """
    # The base must be what the recipe speaks of.
    for_retraining = config.finetune is None
    try:
        model, digest = base_shape(base, tokenizer)
    except InputError as error:
        mend = ": set retrain.tokenizer to keep, or retrain.start to scratch" if for_retraining else ""
        raise InputError(f"{error}{mend}") from None
    if config.model not in (None, model):
        raise InputError(
            "the recipe's section model is not that of the champion, so training cannot go on from its weights: "
            "set retrain.start to scratch, or the section model back"
        )

    # Both sides must have text.
    length = config.context_length or model.context_length
    replayed = replay.shards if replay and config.replay_weight else ()
    objective = ReplayedTextObjective(
        new_documents=new.path / NEW.format(side="train") if new else None,
        replay_shards=tuple(path / "train.arrow" for path in replayed),
        replay_weight=config.replay_weight,
        isolate_documents=(config.train or config.finetune).isolate_documents,  # type: ignore[union-attr]
    )
    shards = [open_tokens(path / "train.arrow", digest) for path in tokens.shards]
    fresh = objective.new_windows(shards, length)
    sides = {"new": fresh}
    if config.replay_weight and not replay:
        sides["old"] = objective.old_windows(shards, length)
    _check_sides(
        sides, "set retrain.start to scratch, or wait for more text" if for_retraining else "add text"
    )

    # How many steps, and then as ever.
    train, adapter = config.train, None
    if config.finetune:
        adapter = config.finetune.adapter
        n_rows = len(fresh) / (1 - config.replay_weight)
        train = steps_for(config.finetune, n_rows, length, model.d_model, most_rows=len(fresh))
    windows = model.model_copy(update={"context_length": length})
    settings = TrainModelConfig.model_validate({"model": windows, "train": train})
    section = "finetune" if config.finetune else "train_model"
    check_corpus(settings, shards, section)
    metrics = train_on_ranks(
        settings,
        objective,
        tokens,
        tokenizer,
        out,
        work,
        machine,
        start=base.path,
        adapter=adapter,
        model_context_length=model.context_length,
        section=section,
    )
    if adapter:
        describe_adapter(adapter, base.path, out)
    return metrics
