"""What a machine can train, and what text is enough."""

import numpy as np
import pytest
import torch

from model.config import ModelConfig, TrainConfig
from model.errors import InputError
from model.machine import TrainingMachine
from model.tokens import open_tokens, write_tokens
from tasks.engine.machine import Machine
from tasks.training.settings import TrainModelConfig, check_corpus, check_machine, machine_of_training

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


def test_of_ranks_that_are_left_open_as_many_as_can_share_a_batch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert machine_of_training(CONFIG, Machine(device="cuda")).ranks == 3
    assert machine_of_training(CONFIG, Machine(device="cuda"), windows_per_row=2).ranks == 3
    one_row = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"tokens_per_batch": 16})})
    assert machine_of_training(one_row, Machine(device="cuda")).ranks == 1
    assert machine_of_training(one_row, Machine(device="cuda", ranks=4)).ranks == 4


def test_the_section_that_is_named_is_that_of_the_recipe():
    with pytest.raises(InputError, match=r"\(finetune\.tokens_per_batch 96 / context_length 16\)"):
        check_machine(CONFIG, TrainingMachine(ranks=5), section="finetune")


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
