"""Compiled blocks: one graph for all of them, whatever is recomputed, and with documents on CUDA, of which fakes are traced."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.config import ModelConfig
from model.loss import token_nats
from model.transformer import Transformer

if TYPE_CHECKING:
    from torch._dynamo.testing import CompileCounter

LENGTH = 24
CONFIG = ModelConfig(n_layers=3, d_model=32, n_heads=2, n_kv_heads=1, context_length=LENGTH)


@pytest.fixture
def graphs() -> "Iterator[CompileCounter]":
    """Counts the graphs that are compiled; what they compute, the interpreter computes."""
    # Imported here: it takes a second, in every process that collects the tests.
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("recomputation", ["none", "selective", "full", 2])
def test_all_blocks_are_one_graph(recomputation: str | int, graphs: "CompileCounter"):
    model = Transformer(CONFIG, 10)
    model.initialize(0)
    model.activation_checkpointing = recomputation
    tokens = torch.arange(2 * LENGTH).view(2, LENGTH) % 10

    def step() -> tuple[torch.Tensor, ...]:
        loss = token_nats(model, tokens, tokens.roll(1)).sum()
        return loss, *torch.autograd.grad(loss, list(model.parameters()))

    expected = step()
    for block in model.blocks:
        block.compile(backend=graphs)
    for value, found in zip(expected, step(), strict=True):
        assert torch.allclose(value, found, atol=1e-6)
    assert graphs.frame_count == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_blocks_that_keep_documents_apart_on_cuda_are_one_graph(graphs: "CompileCounter"):
    with torch.device("meta"):
        model = Transformer(CONFIG, 10)
    with torch.no_grad(), FakeTensorMode():
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                fake = torch.empty(weight.shape, dtype=torch.bfloat16, device="cuda")
                setattr(module, name, nn.Parameter(fake))
        table = torch.empty(model.cos.shape, device="cuda")
        ends = torch.empty(2, 4, dtype=torch.int64, device="cuda")
        states = torch.empty(2, LENGTH, CONFIG.d_model, dtype=torch.bfloat16, device="cuda")
        for block in model.blocks:
            block.compile(backend=graphs)
            states = block(states, table, table, ends=ends)
    assert states.shape == (2, LENGTH, CONFIG.d_model)
    assert graphs.frame_count == 1
    assert not torch._dynamo.utils.counters["graph_break"]
