"""What a training is given: shape and schedule from the recipe, and whether a machine can do it."""

from collections.abc import Sequence
from typing import Self

from pydantic import model_validator

from model.base_config import Config
from model.batches import Windows
from model.config import ModelConfig, TrainConfig
from model.errors import InputError
from model.machine import TrainingMachine
from model.tokens import Tokens
from tasks.engine.machine import Machine
from tasks.training.mixture import MixtureConfig


class TrainModelConfig(Config):
    """The shape of the model and how it is trained: the sections model and train_model of a recipe."""

    model: ModelConfig
    train: TrainConfig
    mixture: MixtureConfig = MixtureConfig()

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        if self.train.tokens_per_batch % self.model.context_length:
            raise ValueError(
                f"train_model.tokens_per_batch ({self.train.tokens_per_batch}) must be a multiple of "
                f"model.context_length ({self.model.context_length})"
            )
        return self


def machine_of_training(
    config: TrainModelConfig, machine: Machine, windows_per_row: int = 1
) -> TrainingMachine:
    """The part of a machine that training processes need: of ranks that it leaves open, as many as can share a batch.

    Raises:
        InputError: if it asks for a device that is not there.
    """
    resolved = machine.training()
    rows = config.train.tokens_per_batch // config.model.context_length // windows_per_row
    sharing = [
        ranks
        for ranks in range(resolved.ranks, 0, -1)
        if rows % ranks == 0 and ranks % max(1, machine.nodes) == 0
    ]
    if machine.ranks or not sharing:
        return resolved
    return resolved.model_copy(update={"ranks": sharing[0]})


def check_machine(
    config: TrainModelConfig,
    machine: TrainingMachine,
    windows_per_row: int = 1,
    section: str = "train_model",
) -> None:
    """Refuse a machine that cannot train this model.

    Args:
        windows_per_row: windows that stay together on a rank; two for preferences.
        section: of the recipe that says how it is trained.

    Raises:
        InputError: naming field, value and mend.
    """
    windows = config.train.tokens_per_batch // config.model.context_length
    if machine.ranks and windows % (machine.ranks * windows_per_row):
        raise InputError(
            f"a batch of {windows} windows ({section}.tokens_per_batch {config.train.tokens_per_batch} / "
            f"context_length {config.model.context_length}) cannot be shared by machine.ranks {machine.ranks}: "
            f"take a multiple of {machine.ranks * windows_per_row * config.model.context_length} tokens, or other ranks"
        )
    check_stage(config.train.dtype, machine, windows_per_row, section)


def check_stage(
    dtype: str, machine: TrainingMachine, windows_per_row: int = 1, section: str = "train_model"
) -> None:
    """Refuse a ZeRO stage that is not for such a training.

    Args:
        windows_per_row, section: as of `check_machine`.

    Raises:
        InputError: naming field, value and mend.
    """
    if windows_per_row > 1 and machine.zero_stage == 3:
        raise InputError(
            "machine.zero_stage 3 is not for preferences: ranks would ask for the head as often as their own pairs are long; set "
            "machine.zero_stage to 2"
        )
    if dtype == "bfloat16" and machine.zero_stage == 0:
        raise InputError(
            f"machine.zero_stage 0 has no float32 masters beside weights in bfloat16 ({section}.dtype): set machine.zero_stage to "
            "auto or 1, or dtype to float32"
        )


def check_corpus(config: TrainModelConfig, shards: Sequence[Tokens], section: str = "train_model") -> None:
    """Refuse a text that does not fill one batch.

    Args:
        section: of the recipe that says how it is trained.

    Raises:
        InputError: naming field, value and mend.
    """
    n_windows = len(Windows([shard.ids for shard in shards], config.model.context_length))
    if n_windows * config.model.context_length < config.train.tokens_per_batch:
        n_tokens = sum(shard.header.n_tokens for shard in shards)
        raise InputError(
            f"the training text has {n_tokens} tokens, less than one batch of {section}.tokens_per_batch "
            f"{config.train.tokens_per_batch}: add text or lower tokens_per_batch"
        )
