"""Frozen matrices in four bits: NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314, section 3), by bitsandbytes."""

import logging
from typing import TYPE_CHECKING, Any

from model.errors import InputError
from model.imports import without

if TYPE_CHECKING:
    from model.transformer import Transformer

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a number: four bits, eight for the scale of 64 numbers, and four bytes for the scale of 256 of those."""


def hold_in_four_bits(model: "Transformer", dtype: str, device: str) -> None:
    """Hold the matrices of every block in four bits, from which each is computed anew where it is used.

    Embedding, head and norms stay as they are.

    Args:
        dtype: bfloat16, or anything else for float32: what the matrices are computed with in.
        device: cpu or cuda, where they are from then on.

    Raises:
        InputError: if bitsandbytes is not installed.
    """
    import torch
    from torch import nn

    # Where there is a package `kernels`, it fetches others of its own from the network, which would be in no key; and it complains
    # where there is none.
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.disabled = True
    try:
        with without("kernels"):
            import bitsandbytes
    except ModuleNotFoundError:
        raise InputError(
            "adapter.base is nf4, and bitsandbytes is not installed: pip install 'scratchlm[qlora]'"
        ) from None

    model.expensive += (torch.ops.bitsandbytes.gemm_4bit.default,)
    computed_in = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    linear: Any = bitsandbytes.nn.Linear4bit
    for block in model.blocks:
        for name, module in list(block.named_modules()):
            if type(module) is not nn.Linear:
                continue
            held = linear(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=computed_in,
                quant_type="nf4",
            )
            held.weight = bitsandbytes.nn.Params4bit(
                module.weight.detach().float(), requires_grad=False, quant_type="nf4"
            )
            # On a CPU it packs weights otherwise for whoever only reads, and those do not train any more.
            held.support_avx512bf16_for_cpu = False
            parent, _, own = name.rpartition(".")
            setattr(block.get_submodule(parent), own, held.to(device))
