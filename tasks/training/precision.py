"""Which compute type is the fast one here. It changes a result, so it becomes part of a recipe as soon as that is read."""

from pathlib import Path
from typing import Any

_CPU_FACTS = Path("/proc/cpuinfo")
_DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/dxg"), Path("/dev/kfd"))
"""Of NVIDIA, of a GPU in WSL 2, and of AMD."""
_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}


def has_cuda() -> bool:
    """Whether torch finds a CUDA device; torch is imported only where there is a driver."""
    if not any(driver.exists() for driver in _DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def _lacks_bfloat16() -> bool:
    """Whether the CUDA device that is here was made before Ampere (compute capability 8)."""
    if not has_cuda():
        return False
    import torch

    return torch.cuda.get_device_capability()[0] < 8


def fast_dtype(device: str, *, is_here: bool = True) -> str:
    """bfloat16 or float32, by what the hardware says of itself.

    Nothing is timed: on a busy minute a machine would find otherwise, and what is in the store would not be found again.

    Args:
        device: machine.device.
        is_here: whether it is this computer that trains.
    """
    if device == "cuda" or (device == "auto" and has_cuda()):
        return "float32" if is_here and _lacks_bfloat16() else "bfloat16"
    if not _CPU_FACTS.exists():
        return "float32"
    flags = next((line for line in _CPU_FACTS.read_text().splitlines() if line.startswith("flags")), "")
    return "bfloat16" if _CPU_FLAGS & set(flags.split()) else "float32"


def with_dtype(values: Any, section: str) -> Any:
    """Values of a recipe with the compute type in the place of auto.

    Args:
        values: sections, as they are written.
        section: the one with the field dtype.
    """
    if not isinstance(values, dict):
        return values
    own, machine = values.get(section, {}), values.get("machine", {})
    if hasattr(own, "model_dump"):
        own = own.model_dump()
    if hasattr(machine, "model_dump"):
        machine = machine.model_dump()
    if not isinstance(machine, dict):
        machine = {}  # whoever checks the recipe says so
    if not isinstance(own, dict) or own.get("dtype", "auto") != "auto":
        return values
    dtype = fast_dtype(machine.get("device", "auto"), is_here=_trains_here(machine))
    return {**values, section: {**own, "dtype": dtype}}


def _trains_here(machine: dict[str, Any]) -> bool:
    """Whether no other computer trains, as far as a machine that is not checked yet tells."""
    cluster = machine.get("cluster")
    kind = cluster.get("kind") if isinstance(cluster, dict) else None
    return machine.get("nodes", 0) in (0, 1) and kind in (None, "local")
