"""The head and its loss: in chunks of our own, and by Liger's kernel where it is installed and there is CUDA."""

import sys
from collections.abc import Iterator
from inspect import signature
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from model import loss
from model.batches import IGNORED
from model.config import ModelConfig
from model.loss import fused_head, summed_cross_entropy
from model.transformer import Transformer

CONFIG = ModelConfig(n_layers=1, d_model=16, n_heads=2, context_length=8)


@pytest.fixture(autouse=True)
def _look_again() -> Iterator[None]:
    fused_head.cache_clear()
    yield
    fused_head.cache_clear()


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


class _StandIn:
    """Called as Liger's function of that name is, version 0.8.5."""

    calls: list[dict[str, Any]]

    @staticmethod
    def apply(*given: Any) -> tuple[Any, ...]:
        def forward(
            _input: Any,
            weight: Any,
            target: Any,
            bias: Any = None,
            ce_weight: Any = None,
            ignore_index: int = -100,
            lse_square_scale: float = 0.0,
            label_smoothing: float = 0.0,
            reduction: str = "mean",
            softcap: Any = None,
            return_z_loss: bool = False,
            accum_dtype: Any = None,
        ) -> None:
            """What it takes."""

        bound = signature(forward).bind(*given)
        bound.apply_defaults()
        _StandIn.calls.append(bound.arguments)
        return (given[0].sum(), None, None, None)


def _install(monkeypatch: pytest.MonkeyPatch, ops: ModuleType | None) -> None:
    package = ModuleType("liger_kernel")
    package.__path__ = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", ops)  # type: ignore[arg-type]


def test_liger_takes_the_head_on_cuda_alone(monkeypatch: pytest.MonkeyPatch):
    ops = ModuleType("liger_kernel.ops")
    ops.LigerFusedLinearCrossEntropyFunction = _StandIn  # type: ignore[attr-defined]
    _install(monkeypatch, ops)
    _StandIn.calls = []
    summed_cross_entropy(*_head())
    assert _StandIn.calls == []
    with FakeTensorMode():
        weight, states = (torch.empty(rows, 16, device="cuda") for rows in (1000, 700))
        targets = torch.empty(700, dtype=torch.int64, device="cuda")
        model: Any = SimpleNamespace(lm_head=SimpleNamespace(weight=weight), vocabulary_size=1000)
        summed_cross_entropy(model, states, targets, has_ignored=True)
    (call,) = _StandIn.calls
    assert call["_input"] is states
    assert call["weight"] is weight
    assert call["target"] is targets
    others = {name: call[name] for name in call if name not in ("_input", "weight", "target")}
    assert others == {
        "bias": None,
        "ce_weight": None,
        "ignore_index": IGNORED,
        "lse_square_scale": 0.0,
        "label_smoothing": 0.0,
        "reduction": "sum",
        "softcap": None,
        "return_z_loss": False,
        "accum_dtype": torch.float32,
    }


def test_without_liger_the_head_is_our_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert fused_head() is None
    fused_head.cache_clear()
    _install(monkeypatch, None)
    with pytest.warns(UserWarning, match="liger-kernel is installed and does not load"):
        assert fused_head() is None
