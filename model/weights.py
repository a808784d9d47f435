"""A model on disk: its weights as safetensors, and what it is in model.json."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig
from model.files import fsync_path
from model.transformer import Transformer

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def load_model(folder: Path) -> tuple[Transformer, dict[str, Any]]:
    """The trained model below `folder` in float32 on the CPU, and its description (model.json)."""
    description = json.loads((folder / DESCRIPTION).read_text())
    model = Transformer(ModelConfig.model_validate(description["model"]), description["vocabulary_size"])
    _load_weights(model, folder / WEIGHTS)
    return model.eval(), description


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a trained model, one after another; a tied head is that of the embedding."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            yield name, file.get_tensor(name)


def weights_digest(model: Transformer) -> str:
    """SHA-256 over names and float32 values of all weights: says whether two models are the same."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + b"\0" + value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write named tensors as a file of safetensors, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}")
    save_file(tensors, building)
    fsync_path(building)
    building.replace(path)
    fsync_path(path.parent)


def _load_weights(model: Transformer, path: Path) -> None:
    weights = load_file(path)
    if model.config.tie_embeddings:
        weights["lm_head.weight"] = weights["embedding.weight"]
    model.load_state_dict(weights)


def save_model(model: Transformer, folder: Path, tokenizer_sha256: str) -> None:
    """Write the weights (float32) and the description, as `load_model` reads them."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]
    save_weights(weights, model.config, model.vocabulary_size, folder, tokenizer_sha256)


def save_weights(
    weights: dict[str, Tensor],
    config: ModelConfig,
    vocabulary_size: int,
    folder: Path,
    tokenizer_sha256: str,
) -> None:
    """Write a model of which there are the weights alone, by name, as `load_model` reads them.

    Args:
        weights: all of them, float32 on the CPU; of a tied head that of the embedding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(weights, folder / WEIGHTS)
    description = {
        "model": config.model_dump(mode="json"),
        "vocabulary_size": vocabulary_size,
        "tokenizer_sha256": tokenizer_sha256,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
