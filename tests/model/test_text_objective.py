"""Held-out windows of text are read as those that are trained on."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from model.batches import IGNORED
from model.config import ModelConfig
from model.held_out import measure_held_out
from model.loss import token_nats
from model.objectives.text import TextObjective
from model.tokens import Tokens, open_tokens
from model.transformer import Transformer
from tests.model.test_tokens import write

LENGTH = 16


@pytest.fixture
def shards(tmp_path: Path) -> list[Tokens]:
    """Documents of other lengths than windows."""
    draw = np.random.default_rng(0)
    path = tmp_path / "a.arrow"
    write(path, [draw.integers(1, 60, size).tolist() for size in (5, 20, 3, 9, 11, 40, 2)])
    return [open_tokens(path)]


def test_documents_that_do_not_see_each_other_in_training_do_not_when_it_is_measured(shards: list[Tokens]):
    model = Transformer(ModelConfig(n_layers=2, d_model=32, n_heads=2, context_length=LENGTH), 300)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(weight.ndim))
    windows = TextObjective(isolate_documents=True).validation_windows(shards, LENGTH, 1000)
    measured = measure_held_out(
        lambda tokens, targets, ends: token_nats(model, tokens, targets, ends), windows, np.ones(300)
    )
    alone, n_tokens = 0.0, 0
    for inputs, targets in TextObjective().validation_windows(shards, LENGTH, 1000):
        real = int((targets != IGNORED).sum())
        bounds = [0, *(place for place in np.flatnonzero(inputs[:real] == 0).tolist() if place), real]
        for begin, end in pairwise(bounds):
            part = [torch.from_numpy(each[None, begin:end]) for each in (inputs, targets)]
            alone += token_nats(model, *part).sum().item()
            n_tokens += end - begin
    assert measured.n_tokens == n_tokens
    assert measured.nats == pytest.approx(alone, rel=1e-5)
    seen = measure_held_out(
        lambda tokens, targets: token_nats(model, tokens, targets),
        TextObjective().validation_windows(shards, LENGTH, 1000),
        np.ones(300),
    )
    assert abs(seen.nats - measured.nats) > 1e-3
