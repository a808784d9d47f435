"""Optimizers and the schedule."""

from itertools import pairwise

import pytest
import torch

from model.config import ModelConfig, TrainConfig
from model.optimizer import build_optimizer, orthogonalize, rate_at, set_rates
from model.transformer import Transformer
from tests.model.test_transformer import mean_loss


@pytest.mark.parametrize("shape", [(24, 24), (24, 64), (64, 24)])
def test_orthogonalize_comes_near_the_polar_factor(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = (found * (u @ v)).sum((1, 2)) / found.norm(dim=(1, 2)) / (u @ v).norm(dim=(1, 2))
    assert cosine.min() > 0.8
    assert torch.linalg.svdvals(found).max() < 2


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_parameter_is_trained_and_the_loss_falls(name):
    config = TrainConfig(tokens=640, tokens_per_batch=32, optimizer=name, learning_rate=0.01)
    model = Transformer(ModelConfig(n_layers=1, d_model=16, n_heads=2, context_length=16), 30)
    model.initialize(0)
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = build_optimizer(config, model)
    x = torch.randint(30, (2, 17), generator=torch.Generator().manual_seed(0))
    losses = []
    for step in range(config.n_steps):
        set_rates(config, optimizer, step)
        loss = mean_loss(model, x[:, :-1], x[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert all(not torch.equal(before[key], value) for key, value in model.named_parameters())


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_step_that_is_left_out_moves_nothing(name):
    """Whatever its gradient is, one infinite number in it: no weight and no moment is another one after it."""
    config = TrainConfig(tokens=640, tokens_per_batch=32, optimizer=name, weight_decay=0.1)
    model = Transformer(ModelConfig(n_layers=1, d_model=16, n_heads=2, context_length=16), 30)
    model.initialize(0)
    optimizer = build_optimizer(config, model)
    x = torch.randint(30, (2, 17), generator=torch.Generator().manual_seed(0))
    optimizer.judge = lambda: torch.tensor(float(step == 2))
    seen = []
    for step in range(4):
        set_rates(config, optimizer, step)
        mean_loss(model, x[:, :-1], x[:, 1:]).backward()
        if step == 2:
            model.embedding.weight.grad[0, 0] = float("inf")
        optimizer.step()
        optimizer.zero_grad()
        moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
        seen.append([weight.detach().clone() for weight in model.parameters()] + moments)
    before, skipped, after = seen[1:]
    assert all(torch.equal(a, b) for a, b in zip(before, skipped, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(skipped, after, strict=True))


def test_schedule_rises_stays_and_falls():
    config = TrainConfig(
        tokens=1000, tokens_per_batch=10, warmup_fraction=0.1, decay_fraction=0.5, final_rate=0.1
    )
    rates = [rate_at(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert all(a >= b for a, b in pairwise(rates[50:]))
    assert rates[99] == pytest.approx(0.1 + 0.9 / 50)
    assert min(rates) > 0
