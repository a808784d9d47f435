"""Models as stock `transformers` loads them."""

from pathlib import Path
from typing import Any

from model.imports import uncollected, without


def import_transformers() -> Any:
    """`transformers` with all that its models have in common, but for what detects objects in pictures.

    The losses of such models import SciPy, which takes a fourth of the time.
    """
    with uncollected(), without("scipy"):
        import transformers
        import transformers.modeling_utils
        from transformers.utils import import_utils

    # It has asked whether SciPy is there, and would remember the answer.
    import_utils.is_scipy_available.cache_clear()
    return transformers


def load_stock_model(folder: Path | str) -> Any:
    """The causal language model of a Hugging Face folder, from its safetensors, in float32 and evaluation mode, on the CPU.

    Raises:
        OSError, ValueError, KeyError: if `transformers` cannot load it.
    """
    with uncollected():
        import torch

        loaded: Any = import_transformers().AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    return loaded.eval()
