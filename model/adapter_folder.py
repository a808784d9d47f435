"""An adapter as a folder of stock `peft`: written beside an exported model, and merged into the base that it is for."""

import json
from pathlib import Path
from typing import Any

from model.adapters import ADAPTER_WEIGHTS, LowRankAdapter, merge_adapters
from model.config import ModelConfig
from model.errors import InputError
from model.hugging_face import hugging_face_names
from model.transformer import Transformer
from model.weights import weights_digest

DESCRIPTION = "adapter.json"
"""Beside the weights of a trained adapter: its shape, and the digest of the base that it belongs to."""

BASE = "base.json"
"""Beside an exported adapter: the digest of the base's weights."""


def write_adapter_folder(trained: Path, config: ModelConfig, folder: Path) -> None:
    """Write the adapter of a trained model for stock `peft` on the exported base.

    Args:
        trained: folder with adapter.safetensors and adapter.json.
        config: shape of the model.
        folder: new folder.
    """
    from safetensors.torch import load_file, save_file

    described = json.loads((trained / DESCRIPTION).read_text())
    adapter = LowRankAdapter.model_validate(described["adapter"])
    weights = load_file(trained / ADAPTER_WEIGHTS)
    names = hugging_face_names(list(weights), config)
    renamed = {f"base_model.model.{name}": value for name, value in zip(names, weights.values(), strict=True)}
    folder.mkdir()
    save_file(renamed, folder / "adapter_model.safetensors")
    targets = sorted({name.split(".")[-3] for name in names if "lora_A" in name})
    adapter.lora_config(target_modules=targets, task_type="CAUSAL_LM", inference_mode=True).save_pretrained(
        folder
    )
    (folder / BASE).write_text(json.dumps({"base_sha256": described["base_sha256"]}) + "\n")
    # `peft` writes a set, in an order that differs from process to process.
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text()) | {"target_modules": targets}
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _what_is_other(fields: dict[str, Any]) -> str | None:
    """The first field of a configuration of `peft` that says that the adapter is computed otherwise than here; None if none."""
    usual = {
        "use_rslora": (None, False),
        "alpha_pattern": (None, {}),
        "rank_pattern": (None, {}),
        "fan_in_fan_out": (None, False),
        # With others than these the base that it is for is no longer the one that it was made on.
        "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
    }
    return next((name for name, values in usual.items() if fields.get(name) not in values), None)


def apply_adapter_folder(model: Transformer, folder: Path) -> None:
    """Merge an adapter of `peft`, trained on this very model, into it.

    Raises:
        InputError: if it is no LoRA or DoRA adapter, or none as in their papers, was trained on another base, or does not fit.
    """
    from safetensors.torch import load_file

    try:
        fields = json.loads((folder / "adapter_config.json").read_text())
        weights = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise InputError(
            f"the adapter in {folder} cannot be read: give a folder with adapter_config.json and adapter_model.safetensors"
        ) from error
    if other := _what_is_other(fields):
        raise InputError(
            f"the adapter in {folder} has {other} {fields[other]!r}, which scratchlm does not compute: merge it with peft's "
            "merge_and_unload, and give the folder of the merged model"
        )
    base = folder / BASE
    if base.is_file() and json.loads(base.read_text())["base_sha256"] != weights_digest(model):
        raise InputError(
            f"the adapter in {folder} was trained on another base: take the model that it was trained on"
        )
    own = list(model.state_dict())
    ours = {
        theirs.removesuffix(".weight"): name.removesuffix(".weight")
        for theirs, name in zip(hugging_face_names(own, model.config), own, strict=True)
    }
    renamed = {}
    for name, value in weights.items():
        module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
        renamed[f"{ours.get(module, module)}.lora_{rest}"] = value
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in renamed})
    try:
        kind = "dora" if fields.get("use_dora") else "lora"
        shape = {"kind": kind, "rank": fields["r"], "alpha": fields["lora_alpha"], "targets": targets}
        LowRankAdapter.model_validate(shape).load_into(model, renamed)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"the adapter in {folder} does not fit this model: {' '.join(str(error).split())[:200]}"
        ) from error
    merge_adapters(model)
