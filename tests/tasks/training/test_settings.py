"""What a machine can train, and what text is enough."""

import numpy as np
import pytest

from model.config import ModelConfig, TrainConfig
from model.errors import InputError
from model.machine import TrainingMachine
from model.tokens import open_tokens, write_tokens
from tasks.training.settings import TrainModelConfig, check_corpus, check_machine

CONFIG = TrainModelConfig(
    model=ModelConfig(n_layers=1, d_model=16, n_heads=1, context_length=16),
    train=TrainConfig(tokens=960, tokens_per_batch=96, optimizer="adamw"),
)


def test_rows_and_not_windows_are_shared_by_the_ranks():
    check_machine(CONFIG, TrainingMachine(ranks=2))
    check_machine(CONFIG, TrainingMachine(ranks=3), windows_per_row=2)
    # Three pairs of windows: two ranks would train two of them.
    with pytest.raises(
        InputError, match=r"cannot be shared by machine\.ranks 2: take a multiple of 64 tokens"
    ):
        check_machine(CONFIG, TrainingMachine(ranks=2), windows_per_row=2)


def test_preferences_are_not_for_stage_3():
    check_machine(CONFIG, TrainingMachine(ranks=1, zero_stage=2), windows_per_row=2)
    with pytest.raises(InputError, match=r"zero_stage 3 is not for preferences.*zero_stage to 2"):
        check_machine(CONFIG, TrainingMachine(ranks=1, zero_stage=3), windows_per_row=2)


def test_bfloat16_needs_masters():
    train = CONFIG.train.model_copy(update={"dtype": "bfloat16"})
    config = CONFIG.model_copy(update={"train": train})
    check_machine(config, TrainingMachine(ranks=1))
    with pytest.raises(
        InputError, match=r"zero_stage 0 has no float32 masters .* set machine\.zero_stage to auto or 1"
    ):
        check_machine(config, TrainingMachine(ranks=1, zero_stage=0))


def test_a_text_of_less_than_a_batch_is_refused(tmp_path):
    for size in (100, 90):
        path = tmp_path / f"{size}.arrow"
        write_tokens(
            path,
            [np.arange(size)],
            ["x"],
            ["s"],
            [1],
            tokenizer_sha256="t",
            vocabulary_size=200,
            end_of_text_id=199,
        )
    check_corpus(CONFIG, [open_tokens(tmp_path / "100.arrow")])
    with pytest.raises(
        InputError, match=r"has 91 tokens, less than one batch of train_model\.tokens_per_batch 96"
    ):
        check_corpus(CONFIG, [open_tokens(tmp_path / "90.arrow")])
