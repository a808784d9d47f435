"""Optimizers and the schedule."""

import math
import weakref
from itertools import accumulate, pairwise

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import ModelConfig, TrainConfig
from model.masters import Piece, Placed
from model.optimizer import Muon, _Exchange, build_optimizer, orthogonalize, rate_at, set_rates
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


class HeldBytes(TorchDispatchMode):
    """What tensors that are made in the body hold, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, list[int]] = {}
        self.most = 0

    def _forget(self, place: int) -> None:
        self.held[place][1] -= 1
        if not self.held[place][1]:
            del self.held[place]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and all(made is not each for each in args):
            storage = made.untyped_storage()
            place = storage.data_ptr()
            if place in self.held or place not in given:
                self.held.setdefault(place, [storage.nbytes(), 0])[1] += 1
                weakref.finalize(made, self._forget, place)
        self.most = max(self.most, sum(size for size, _ in self.held.values()))
        return made


def test_a_step_of_muon_holds_what_the_matrices_of_one_shape_need():
    """As it is foretold, and not of all matrices; in pieces of a flat tensor it does the same."""
    shapes = [(64, 192), (192, 64), (64, 128), (128, 64)] * 4
    generator = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    flat = nn.Parameter(torch.cat([matrix.detach().flatten() for matrix in matrices]))
    placed: dict[tuple[int, int], list[Placed]] = {}
    for shape, end in zip(shapes, accumulate(map(math.prod, shapes)), strict=True):
        size = math.prod(shape)
        placed.setdefault(shape, []).append(Placed("", shape, (Piece(0, 0, size, end - size),)))
    whole, in_pieces = (Muon(weights, lr=0.1, weight_decay=0.1) for weights in (matrices, [flat]))
    in_pieces.exchanges[flat] = [_Exchange(same, 0, [0]) for same in placed.values()]
    for step in range(2):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        flat.grad = torch.cat([matrix.grad.flatten() for matrix in matrices])
        for optimizer in (whole, in_pieces):
            with HeldBytes() as held:
                optimizer.step()
            # The moments are made in the first one. Products of a matrix with itself are a third of these matrices.
            assert step == 0 or held.most < (5 + 5 / 3) * 4 * 4 * 64 * 192
        assert torch.allclose(flat, torch.cat([matrix.flatten() for matrix in matrices]), atol=1e-6)


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
