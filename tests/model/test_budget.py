"""What a training needs, as it is foretold, beside what torch counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from model.adapters import LowRankAdapter
from model.budget import accelerator_named, block_bytes_per_token, count, lay_out, memory
from model.config import ModelConfig, flops_per_token
from model.quantized import NF4_BYTES, holder
from model.sizes import DEPTHS
from model.transformer import Transformer, count_parameters
from model.weights import build_model

SHAPES = [
    {},
    {"qk_norm": True, "n_kv_heads": 2},
    {"feed_forward": "gelu", "norm": "layernorm"},
    {"feed_forward": "gelu", "tie_embeddings": True, "d_feedforward": 200},
    {"d_head": 48, "n_kv_heads": 1},
]


def shape(**fields) -> ModelConfig:
    return ModelConfig(**{"n_layers": 2, "d_model": 128, "n_heads": 4, "context_length": 64, **fields})


@pytest.mark.parametrize("fields", SHAPES)
def test_parameters_are_those_of_the_model(fields):
    config = shape(**fields)
    assert count(config, 300).total == count_parameters(Transformer(config, 300))


@pytest.mark.parametrize("fields", SHAPES)
@pytest.mark.parametrize("adapter", [{}, {"kind": "dora", "rank": 3}, {"targets": ("q_proj", "down_proj")}])
def test_what_an_adapter_adds_is_what_is_trained(fields, adapter):
    config, beside = shape(**fields), LowRankAdapter(**adapter)
    model = Transformer(config, 300)
    beside.add_to(model, seed=0)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert beside.beside(config).parameters == trained


def test_what_ranks_exchange_and_hold_whole_for_a_moment_is_counted():
    config = shape(n_layers=8, d_model=512)
    n = count(config, 300).total
    layout = {"micro_batch": 2, "window_length": 64, "dtype": "bfloat16", "optimizer": "adamw", "ranks": 4}
    on_cuda = memory(config, 300, zero_stage=3, **layout, on_cpu=False)
    on_cpu = memory(config, 300, zero_stage=3, **layout)
    # Two blocks of eight, and the embedding.
    assert n / 4 < on_cuda.weights / 2 - n / 4 < n / 3
    assert on_cuda.gradients - on_cpu.gradients == 2 * 2 * n


def test_adapters_need_less_than_all_weights_and_more_than_none():
    config = shape(n_layers=8, d_model=512)
    layout = {"micro_batch": 2, "window_length": 64, "dtype": "bfloat16", "optimizer": "adamw", "ranks": 1}
    whole = memory(config, 300, zero_stage=1, **layout)
    adapters = memory(config, 300, zero_stage=1, **layout, beside=LowRankAdapter().beside(config))
    # Sixteen bytes of each weight are gradients, masters and moments.
    assert adapters.total < whole.total / 2
    assert adapters.weights > whole.weights
    assert adapters.activations > whole.activations


@pytest.mark.parametrize("fields", SHAPES)
def test_a_base_in_four_bits_is_as_large_as_foretold(fields):
    config = shape(d_model=256, **fields) if "d_head" not in fields else shape(**fields)
    weights = Transformer(config, 300).named_parameters()
    model = build_model(config, 300, weights, holder("bfloat16", "cpu"))
    matrices = [module.weight for module in model.blocks.modules() if isinstance(module, torch.nn.Linear)]
    # Scales of 64 numbers, of which 256 share another one, and the mean of those; of small matrices the last ones are not full.
    held = sum(
        weight.numel() + weight.quant_state.absmax.numel() + 4 * weight.quant_state.state2.absmax.numel()
        for weight in matrices
    )
    assert held == pytest.approx(NF4_BYTES * count(config, 300).matrices, rel=0.01)


def test_four_bits_save_what_they_save():
    config = shape(n_layers=8, d_model=512)
    layout = {"micro_batch": 2, "window_length": 64, "dtype": "bfloat16", "optimizer": "adamw", "ranks": 1}
    needs = [
        memory(config, 300, zero_stage=1, **layout, beside=LowRankAdapter(base=base).beside(config))
        for base in ("full", "nf4")
    ]
    # And one matrix at a time as it is computed with.
    largest = 2 * config.d_model * config.feedforward_dim
    saved = needs[0].weights - needs[1].weights + largest
    assert saved == pytest.approx((2 - NF4_BYTES) * count(config, 300).matrices, abs=1)
    assert needs[0].activations == needs[1].activations


@pytest.mark.parametrize("fields", SHAPES)
def test_flops_are_those_that_torch_counts(fields):
    config = shape(**fields)
    model, tokens = Transformer(config, 300), torch.randint(300, (2, 64))
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    # torch counts attention as if it were not causal: twice as much, and its backward pass 2.5 times as much as forward, since
    # the scores are computed again.
    attention = 6 * config.n_layers * config.n_heads * config.head_dim * 64
    counted = counter.get_total_flops() / tokens.numel()
    ours = flops_per_token(config, 300)
    assert ours - attention <= counted <= ours + 1.5 * attention
    without = {
        name: value
        for name, value in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(name)
    }
    # Nothing is multiplied for the gradient of the first embedding; all else is forward once and backward twice.
    assert sum(without.values()) / tokens.numel() == pytest.approx(ours - attention, rel=0.01)


@pytest.mark.parametrize("fields", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ends", [None, [[20, 50, 64]] * 8])
def test_a_block_keeps_what_is_foretold(fields, dtype: torch.dtype, ends: list[list[int]] | None):
    config = shape(**fields)
    model = Transformer(config, 300)
    block = model.blocks[0].to(dtype)
    kept: dict[int, int] = {}

    where = torch.tensor(ends) if ends else None

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(8, 64, config.d_model, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x, model.cos, model.sin, ends=where)
    shared = {weight.untyped_storage().data_ptr() for weight in block.parameters()}
    found = sum(size for pointer, size in kept.items() if pointer not in shared) / x[..., 0].numel()
    foretold = block_bytes_per_token(config, dtype.itemsize, is_one_by_one=bool(ends))
    assert foretold == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_of_ones_own_are_kept_once_for_all_blocks(dtype: torch.dtype):
    config = shape(n_layers=3)
    model = Transformer(config, 300).to(dtype)
    model.fill_tables()
    tokens, positions = torch.randint(300, (8, 64)), torch.arange(64).repeat(8, 1)

    def kept_bytes(**more: torch.Tensor) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            states = model.hidden_states(tokens, **more)
        return sum(kept.values()) if states.requires_grad else 0

    tables = 2 * tokens.numel() * config.head_dim * dtype.itemsize
    assert kept_bytes(positions=positions) - kept_bytes() <= tables


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from([1, 2, 8]), st.sampled_from(["float32", "bfloat16"]), st.sampled_from(["muon", "adamw"])
)
def test_more_is_cut_up_at_every_stage_and_recomputation_keeps_less(ranks: int, dtype: str, optimizer: str):
    def needs(stage: int, recompute: str) -> int:
        config = shape(n_layers=12, d_model=512, context_length=512)
        found = memory(
            config,
            8192,
            micro_batch=4,
            window_length=512,
            dtype=dtype,
            optimizer=optimizer,
            zero_stage=stage,
            ranks=ranks,
            recompute=recompute,
        )
        return found.total

    stages = [needs(stage, "none") for stage in (1, 2, 3)]
    assert stages == sorted(stages, reverse=True)
    modes = [needs(1, mode) for mode in ("none", "selective", "full")]
    assert modes == sorted(modes, reverse=True)


def test_the_cheapest_layout_that_fits_is_taken():
    config = ModelConfig(size="350M")

    def layout(gigabytes: float, **given):
        return lay_out(
            config,
            50_257,
            windows=64,
            window_length=1024,
            dtype="bfloat16",
            optimizer="muon",
            ranks=8,
            memory_bytes=gigabytes * 1e9,
            on_cpu=False,
            **given,
        )

    large = layout(80)
    assert (large.micro_batch, large.zero_stage, large.recompute, large.fits) == (16, 1, "none", True)
    smaller = [layout(gigabytes) for gigabytes in (24, 16, 8)]
    assert all(plan.fits for plan in smaller)
    assert [plan.memory.total for plan in smaller] == sorted(
        (plan.memory.total for plan in smaller), reverse=True
    )
    assert not layout(1).fits
    kept = layout(1, micro_batch=8, zero_stage=0, recompute="none")
    assert (kept.micro_batch, kept.zero_stage, kept.recompute) == (8, 0, "none")


def test_a_size_is_its_shape_and_may_be_changed():
    named = ModelConfig.model_validate({"size": "124M", "tie_embeddings": True})
    written = ModelConfig(n_layers=12, d_model=768, n_heads=12, context_length=1024, tie_embeddings=True)
    assert named == written
    assert count(named, 50_257).total == pytest.approx(124e6, rel=0.01)
    assert ModelConfig.model_validate({"size": "3M", "n_layers": 3}).n_layers == 3
    for size in DEPTHS:
        config = ModelConfig.model_validate({"size": size, "tie_embeddings": True})
        called = float(size[:-1]) * (1e9 if size.endswith("B") else 1e6)
        # By the vocabulary of GPT-2, and below 100M without any: there it would be most of the model.
        counted = count(config, 50_257 if called > 100e6 else 0).total
        assert counted == pytest.approx(called, rel=0.2), size
    with pytest.raises(ValueError, match="there is no size '9M': take one of 3M"):
        ModelConfig.model_validate({"size": "9M"})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("RTX-4090", "rtx 4090"),
        ("NVIDIA H100 PCIe", "h100 pcie"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("h100sxm", "h100"),
        ("TPU v5", None),
    ],
)
def test_devices_are_known_by_the_names_that_they_have(name: str, kind: str | None):
    found = accelerator_named(name)
    assert (found.name if found else None) == kind


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_parts_of_what_is_foretold_are_bytes_and_come_to_all_of_it(on_cpu: bool):
    how = {"dtype": "float32", "optimizer": "muon", "zero_stage": 0, "ranks": 1, "on_cpu": on_cpu}
    found = memory(ModelConfig(), 8192, micro_batch=4, window_length=256, **how)
    assert sum(found.parts.values()) == found.total
    assert "on_cpu" not in found.parts
    assert (found.parts["shared"] < 0) == on_cpu
