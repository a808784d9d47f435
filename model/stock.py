"""Models as stock `transformers` loads them."""

from pathlib import Path
from typing import Any

from model.imports import uncollected


def load_stock_model(folder: Path | str) -> Any:
    """The causal language model of a Hugging Face folder, from its safetensors, in float32 and evaluation mode, on the CPU.

    Raises:
        OSError, ValueError, KeyError: if `transformers` cannot load it.
    """
    with uncollected():
        import torch
        import transformers

        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    return loaded.eval()
