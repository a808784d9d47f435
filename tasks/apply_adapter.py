"""An exported adapter, or one of stock `peft`, merged into the model that it was trained on."""

import json
from pathlib import Path
from typing import Any

from model.config import AdapterConfig
from tasks.errors import InputError
from tasks.hugging_face import hugging_face_names


def apply_adapter(model: Any, folder: Path) -> None:
    """Merge an adapter of `peft`, trained on this very model, into it.

    Raises:
        InputError: if it is no LoRA or DoRA adapter, was trained on another base, or does not fit.
    """
    from safetensors.torch import load_file

    from model.adapters import load_adapters, merge_adapters
    from model.weights import weights_digest

    try:
        fields = json.loads((folder / "adapter_config.json").read_text())
        weights = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise InputError(
            f"the adapter in {folder} cannot be read: give a folder with adapter_config.json and adapter_model.safetensors"
        ) from error
    base = folder / "base.json"
    if base.is_file() and json.loads(base.read_text())["base_sha256"] != weights_digest(model):
        raise InputError(f"the adapter in {folder} was trained on another base: take the model that it was trained on")
    expected = list(model.state_dict())
    ours = {
        theirs.removesuffix(".weight"): own.removesuffix(".weight")
        for theirs, own in zip(hugging_face_names(expected, model.config), expected, strict=True)
    }
    renamed = {}
    for name, value in weights.items():
        module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
        renamed[f"{ours.get(module, module)}.lora_{rest}"] = value
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in renamed})
    try:
        config = AdapterConfig(
            kind="dora" if fields.get("use_dora") else "lora",
            rank=fields["r"],
            alpha=fields["lora_alpha"],
            targets=tuple(targets),  # type: ignore[arg-type]
        )
        load_adapters(model, config, renamed)
    except (KeyError, ValueError) as error:
        raise InputError(f"the adapter in {folder} does not fit this model: {' '.join(str(error).split())[:200]}") from error
    merge_adapters(model)
