"""What follows from a base for a recipe that tunes it."""

from types import SimpleNamespace
from typing import Any

import pytest

from flows.finetune import _window_length
from model.errors import InputError
from tasks.training.finetune_settings import FinetuneConfig


@pytest.mark.parametrize(
    ("asked", "context", "length"), [(None, 131_072, 4096), (None, 256, 256), (64, 256, 64)]
)
def test_a_long_context_is_tuned_in_windows_that_fit(asked: int | None, context: int, length: int):
    recipe: Any = SimpleNamespace(context_length=asked, finetune=FinetuneConfig())
    base: Any = SimpleNamespace(shape=SimpleNamespace(context_length=context))
    assert _window_length(recipe, base) == length


def test_no_window_is_longer_than_the_base_reads():
    recipe: Any = SimpleNamespace(context_length=512)
    base: Any = SimpleNamespace(shape=SimpleNamespace(context_length=256))
    with pytest.raises(InputError, match=r"context_length \(512\) is more than the base's \(256\)"):
        _window_length(recipe, base)


@pytest.mark.parametrize(("windows_per_row", "is_whole"), [(1, True), (2, False)])
def test_a_batch_that_is_no_whole_rows_is_refused_before_anything_runs(windows_per_row: int, is_whole: bool):
    recipe: Any = SimpleNamespace(context_length=64, finetune=FinetuneConfig(tokens_per_batch=192))
    base: Any = SimpleNamespace(shape=SimpleNamespace(context_length=256))
    if is_whole:
        assert _window_length(recipe, base, windows_per_row) == 64
    else:
        with pytest.raises(InputError, match=r"tokens_per_batch \(192\) must be a multiple of 128"):
            _window_length(recipe, base, windows_per_row)
