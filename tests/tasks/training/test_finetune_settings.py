"""How much text becomes how many steps of fine-tuning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InputError
from tasks.training.finetune_settings import FinetuneConfig, steps_for


def test_thirty_conversations_are_dozens_of_small_steps():
    train = steps_for(FinetuneConfig(), 4, 256, 128)
    assert train.tokens_per_batch == 256
    assert 40 <= train.n_steps <= 60


def test_narrow_bases_get_larger_rates():
    rates = [steps_for(FinetuneConfig(), 4, 256, width).learning_rate for width in (768, 128)]
    assert rates == pytest.approx([2e-4, 1.2e-3])
    assert steps_for(FinetuneConfig(learning_rate=0.1), 4, 256, 128).learning_rate == 0.1


def test_much_text_has_large_batches_and_three_epochs():
    train = steps_for(FinetuneConfig(), 10_000, 256, 128)
    assert train.tokens_per_batch == 4096
    assert train.tokens == pytest.approx(3 * 10_000 * 256, rel=0.001)


@given(st.integers(1, 100_000), st.sampled_from([64, 256, 2048, 8192]), st.floats(0.1, 20))
def test_epochs_are_those_asked_for(n_rows: int, row: int, epochs: float):
    train = steps_for(FinetuneConfig(epochs=epochs), n_rows, row, 128)
    asked = epochs * n_rows
    rows = train.tokens // row
    # To a whole step, of which there are 50 where there are as many rows.
    assert abs(rows - asked) <= max(1.0, asked / 50)


def test_a_batch_of_which_nothing_is_said_is_no_larger_than_the_new_text():
    """Beside replayed rows, which are counted in an epoch."""
    config = FinetuneConfig(epochs=60)
    assert steps_for(config, 3 / 0.7, 64, 64).tokens_per_batch == 4 * 64
    assert steps_for(config, 3 / 0.7, 64, 64, most_rows=3).tokens_per_batch == 2 * 64


def test_a_batch_is_whole_rows():
    with pytest.raises(InputError, match=r"finetune.tokens_per_batch \(100\) must be a multiple of 64"):
        steps_for(FinetuneConfig(tokens_per_batch=100), 10, 64, 128)
