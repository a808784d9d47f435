"""The device and the threads of a rank, and the kernels of its attention."""

import os
import warnings

import torch

from model.machine import TrainingMachine, threads_of_rank

_FLASH_ATTENTION = {9: ("FA3", "FA4"), 10: ("FA4",)}
"""Implementations that torch can put in the place of its own FlashAttention 2, by compute capability, the better one first."""
_PACKAGES = {"flash_attn_interface", "flash_attn", "flash_attn.cute", "flash_attn.cute.interface"}
"""That bring them; `flash_attn` alone is FlashAttention 2."""


def claim_device(machine: TrainingMachine) -> str:
    """Set this rank's threads, and take its device: cpu, or cuda:N, which is the current one from then on."""
    torch.set_num_threads(threads_of_rank(machine))
    if machine.device == "cpu":
        return "cpu"
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(device)
    take_flash_attention(torch.cuda.get_device_capability(device)[0])
    return device


def take_flash_attention(capability: int) -> str | None:
    """Let torch compute attention with FlashAttention 3 or 4, where one is installed and knows the device.

    Args:
        capability: the major one of the device: 9 for Hopper, 10 for Blackwell.

    Returns:
        FA3 or FA4; None where torch's own kernels stay. One that is installed and does not load is told by a warning.
    """
    from torch.nn.attention import activate_flash_attention_impl

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
