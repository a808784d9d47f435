"""The head and its loss, in chunks."""

import pytest
import torch
import torch.nn.functional as F

from model import loss
from model.batches import IGNORED
from model.config import ModelConfig
from model.loss import summed_cross_entropy
from model.transformer import Transformer

CONFIG = ModelConfig(n_layers=1, d_model=16, n_heads=2, context_length=8)


def _head() -> tuple[Transformer, torch.Tensor, torch.Tensor]:
    model = Transformer(CONFIG, 1000)
    with torch.no_grad():
        model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    states = torch.randn(700, 16, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(700) % 1000
    return model, states.requires_grad_(), targets


def _whole(model: Transformer, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(states @ model.lm_head.weight.T, targets, ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("has_ignored", [False, True])
@pytest.mark.parametrize("rows", [64, 700])
def test_chunks_of_the_head_come_to_the_loss_and_the_gradients_of_the_whole(
    rows: int, has_ignored: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loss, "head_rows", lambda *given: rows)
    model, states, targets = _head()
    if has_ignored:
        targets[::3] = IGNORED
    found = {}
    for name, summed in (
        ("ours", summed_cross_entropy(model, states, targets, has_ignored=has_ignored)),
        ("whole", _whole(model, states, targets)),
    ):
        found[name] = (summed, *torch.autograd.grad(summed / 7, (states, model.lm_head.weight)))
    for ours, theirs in zip(found["ours"], found["whole"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
