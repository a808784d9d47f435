"""The device and the threads of a rank, and the kernels of its attention."""

import os
import warnings

import torch

from model.errors import InputError
from model.machine import TrainingMachine, threads_of_rank

_FLASH_ATTENTION = {9: ("FA3", "FA4"), 10: ("FA4",)}
"""Implementations that torch can put in the place of its own FlashAttention 2, by compute capability, the better one first."""
_PACKAGES = {"flash_attn_interface", "flash_attn", "flash_attn.cute", "flash_attn.cute.interface"}
"""That bring them; `flash_attn` alone is FlashAttention 2."""


def claim_device(machine: TrainingMachine, head_dim: int | None = None) -> str:
    """Set this rank's threads, and take its device: cpu, or cuda:N, which is the current one from then on.

    Args:
        head_dim: features of a head, by which a kernel for attention is chosen; torch's own if None.
    """
    torch.set_num_threads(threads_of_rank(machine))
    if machine.device == "cpu":
        return "cpu"
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(device)
    if head_dim is not None:
        take_flash_attention(torch.cuda.get_device_capability(device)[0], head_dim)
    return device


_LEAST_CAPABILITY = 8


def check_documents_apart(device: str, dtype: str) -> None:
    """Refuse a device without the kernel by which documents are kept apart in bfloat16.

    Raises:
        InputError: naming field, value and mend.
    """
    if device == "cpu" or dtype != "bfloat16":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability[0] < _LEAST_CAPABILITY:
        name, has = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        raise InputError(
            f"dtype is bfloat16, and documents are kept apart in it by a kernel for compute capability {_LEAST_CAPABILITY}.0; {name} "
            f"has {has}: set dtype to float32, or take another device"
        )


def take_flash_attention(capability: int, head_dim: int) -> str | None:
    """Let torch compute attention with FlashAttention 3 or 4, where one is installed and knows the device and such heads.

    Args:
        capability: the major one of the device: 9 for Hopper, 10 for Blackwell.
        head_dim: features of a head: multiples of 8 up to 256; on Blackwell up to 128, or 256 (flash_attn/cute/interface.py).

    Returns:
        FA3 or FA4; None where torch's own kernels stay. One that is installed and does not load is told by a warning.
    """
    from torch.nn.attention import activate_flash_attention_impl

    largest = 128 if capability == 10 and head_dim != 256 else 256
    if head_dim % 8 or head_dim > largest:
        return None
    for name in _FLASH_ATTENTION.get(capability, ()):
        try:
            activate_flash_attention_impl(name)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name in _PACKAGES:
                continue
            warnings.warn(
                f"{name} is installed and does not load ({error}): attention is torch's own", stacklevel=2
            )
            continue
        return name
    return None
