"""The Transformer: shapes, causality, positions, its loss, and recomputation."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from model import loss
from model.batches import IGNORED
from model.config import ModelConfig, flops_per_token
from model.objectives.text import TextObjective
from model.quantized import holder
from model.transformer import (
    Transformer,
    apply_rope,
    count_parameters,
    rope_tables,
)
from model.weights import build_model
from tests.conftest import ROOT

SMALL = {"n_layers": 2, "d_model": 32, "n_heads": 4, "context_length": 16}
VARIANTS = [
    {},
    {"qk_norm": True},
    {"n_kv_heads": 2},
    {"feed_forward": "gelu"},
    {"norm": "layernorm"},
    {"norm": "layernorm", "feed_forward": "gelu", "n_kv_heads": 1},
    {"tie_embeddings": True},
]


def build(seed: int = 0, **fields) -> Transformer:
    """A small model whose zero-initialised matrices are drawn too, so that every part matters."""
    model = Transformer(ModelConfig(**{**SMALL, **fields}), 50)
    model.initialize(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    return model


def tokens(batch: int = 2, length: int = 16) -> torch.Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(1))


def mean_loss(model: Transformer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next tokens of text, as training takes it."""
    return TextObjective().loss(model, {"tokens": x, "targets": y}) / y.numel()


@pytest.mark.parametrize("fields", VARIANTS)
def test_a_later_token_changes_no_earlier_logit(fields):
    model, x = build(**fields), tokens()
    changed = x.clone()
    changed[:, 9] = (x[:, 9] + 1) % 50
    before, after = model(x), model(changed)
    assert before.shape == (2, 16, 50)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("fields", VARIANTS)
def test_the_loss_and_its_gradients_are_those_of_cross_entropy(fields):
    ours, theirs = build(**fields), build(**fields)
    x, y = tokens(), tokens().roll(-1, 1)
    loss = mean_loss(ours, x, y)
    expected = F.cross_entropy(theirs(x).flatten(0, 1), y.flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)


def test_what_is_measured_is_cross_entropy_and_no_more_logits_exist_than_a_chunk(
    monkeypatch: pytest.MonkeyPatch,
):
    model = Transformer(ModelConfig(n_layers=1, d_model=16, n_heads=2, context_length=12), 50)
    tokens = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[1, 4:] = IGNORED
    expected = F.cross_entropy(model(tokens).transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    monkeypatch.setattr(loss, "head_rows", lambda vocabulary_size, device: 5)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, states, logits: seen.append(len(logits)))
    with torch.no_grad():
        torch.testing.assert_close(loss.token_nats(model, tokens, targets), expected)
    assert max(seen) == 5


def test_a_new_model_predicts_the_uniform_distribution():
    model = Transformer(ModelConfig(**SMALL), 50)
    model.initialize(0)
    assert mean_loss(model, tokens(), tokens()).item() == pytest.approx(math.log(50), abs=1e-5)


def test_weights_are_a_function_of_the_seed():
    first, again, other = build(3), build(3), build(4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize("mode", ["selective", "full", 2])
def test_activation_checkpointing_changes_no_gradient(mode: str | int):
    plain, recomputed = build(), build()
    recomputed.activation_checkpointing = mode
    for model in (plain, recomputed):
        mean_loss(model, tokens(), tokens()).backward()
    assert all(
        torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True)
    )


class Calls(TorchDispatchMode):
    """Names of all operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.append(function.name())
        return function(*arguments, **(options or {}))


def test_products_of_four_bits_are_kept_where_recomputation_is_selective():
    """They are the matrix products of such a model."""
    calls = {}
    for mode in ("none", "selective", "full"):
        whole = build()
        model = build_model(whole.config, 50, whole.named_parameters(), holder("float32", "cpu"))
        model.activation_checkpointing = mode
        model.embedding.requires_grad_()
        with Calls() as seen:
            mean_loss(model, tokens(), tokens()).backward()
        calls[mode] = seen.names.count("bitsandbytes::gemm_4bit")
    forward = 7 * SMALL["n_layers"]
    # Of a block that is recomputed, what the last product gives is not asked for again.
    again = forward - SMALL["n_layers"]
    assert calls == {"none": forward, "selective": forward, "full": forward + again}


def test_rope_depends_on_distance_only():
    cos, sin = rope_tables(32, 8, 10_000.0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(i: int, j: int) -> float:
        rotated_q, rotated_k = (
            apply_rope(q, cos[i : i + 1], sin[i : i + 1]),
            apply_rope(k, cos[j : j + 1], sin[j : j + 1]),
        )
        return (rotated_q * rotated_k).sum().item()

    assert score(5, 2) == pytest.approx(score(25, 22), abs=1e-5)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-3)


def test_counts():
    model = build(tie_embeddings=True)
    assert count_parameters(model) == sum(p.numel() for p in set(model.parameters()))
    untied = ModelConfig(**SMALL)
    assert flops_per_token(untied, 50) > 6 * 50 * 32


def test_too_long_a_text_is_refused():
    with pytest.raises(ValueError, match="17 tokens do not fit into the context length 16"):
        build()(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"d_model": 30}, "must be divisible by n_heads"),
        ({"d_model": 12, "n_heads": 4}, "must be even for RoPE"),
        ({"n_kv_heads": 3}, "must be divisible by n_kv_heads"),
        ({"qk_norm": True, "feed_forward": "gelu"}, "exports to no stock transformers class"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        ModelConfig(**{**SMALL, **fields})


def test_the_model_can_be_read_in_one_sitting():
    assert len((ROOT / "model" / "transformer.py").read_text().splitlines()) < 350
