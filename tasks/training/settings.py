"""What a training is given: shape and schedule from the recipe, and whether a machine can do it."""

from typing import Self

from pydantic import model_validator

from model.base_config import Config
from model.config import ModelConfig, TrainConfig
from model.errors import InputError
from model.machine import TrainingMachine


class TrainModelConfig(Config):
    """The shape of the model and how it is trained: the sections model and train_model of a recipe."""

    model: ModelConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        if self.train.tokens_per_batch % self.model.context_length:
            raise ValueError(
                f"train_model.tokens_per_batch ({self.train.tokens_per_batch}) must be a multiple of "
                f"model.context_length ({self.model.context_length})"
            )
        return self


def check_machine(config: TrainModelConfig, machine: TrainingMachine) -> None:
    """Refuse a machine that cannot train this model.

    Raises:
        InputError: naming field, value and mend.
    """
    windows = config.train.tokens_per_batch // config.model.context_length
    if machine.ranks and windows % machine.ranks:
        raise InputError(
            f"a batch of {windows} windows (train_model.tokens_per_batch {config.train.tokens_per_batch} / "
            f"model.context_length {config.model.context_length}) cannot be shared by machine.ranks {machine.ranks}: "
            f"take a multiple of {machine.ranks * config.model.context_length} tokens, or other ranks"
        )
    if config.train.optimizer == "muon" and machine.zero_stage:
        raise InputError(
            f"train_model.optimizer muon needs whole matrices, and machine.zero_stage {machine.zero_stage} splits them: "
            "set machine.zero_stage to 0 or train_model.optimizer to adamw"
        )
