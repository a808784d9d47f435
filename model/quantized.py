"""Frozen matrices in four bits: NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314, section 3), by bitsandbytes."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from model.errors import InputError
from model.imports import without

if TYPE_CHECKING:
    from torch import nn

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a number: four bits, eight for the scale of 64 numbers, and four bytes for the scale of 256 of those."""


@contextmanager
def alone() -> Iterator[None]:
    """Around whatever imports bitsandbytes first, as `peft` does where it is installed.

    Where there is a package `kernels`, it fetches others of its own from the network, which would be in no key; and it complains
    where there is none.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").disabled = True
    with without("kernels"):
        yield


def holder(dtype: str, device: str) -> "Callable[[nn.Linear], nn.Module]":
    """What makes of a linear layer one that holds its matrix in four bits, from which it is computed anew where it is used.

    Args:
        dtype: bfloat16, or anything else for float32: what the matrix is computed with in.
        device: cpu or cuda, where it is from then on.

    Raises:
        InputError: if bitsandbytes is not installed.
    """
    import torch

    try:
        with alone():
            import bitsandbytes
    except ModuleNotFoundError:
        raise InputError(
            "adapter.base is nf4, and bitsandbytes is not installed: pip install 'scratchlm[qlora]'"
        ) from None

    computed_in = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    linear: Any = bitsandbytes.nn.Linear4bit

    def held(layer: "nn.Linear") -> "nn.Module":
        made = linear(
            layer.in_features, layer.out_features, bias=False, compute_dtype=computed_in, quant_type="nf4"
        )
        made.weight = bitsandbytes.nn.Params4bit(
            layer.weight.detach().float(), requires_grad=False, quant_type="nf4"
        )
        # On a CPU it packs weights otherwise for whoever only reads, and those do not train any more.
        made.support_avx512bf16_for_cpu = False
        moved: nn.Module = made.to(device)
        return moved

    return held
