"""A model on disk: its weights as safetensors, and what it is in model.json."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import ModelConfig
from model.files import fsync_path
from model.transformer import Transformer

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


Hold = Callable[[nn.Linear], nn.Module]
"""What makes of a linear layer one that holds its matrix in another way."""


def load_model(folder: Path, hold: Hold | None = None) -> tuple[Transformer, dict[str, Any]]:
    """The trained model below `folder` in float32 on the CPU, and its description (model.json).

    Args:
        hold: how the matrices of the blocks are held, if it is not so.
    """
    description = json.loads((folder / DESCRIPTION).read_text())
    config = ModelConfig.model_validate(description["model"])
    model = build_model(config, description["vocabulary_size"], read_weights(folder), hold)
    return model.eval(), description


def parameter_shapes(config: ModelConfig, vocabulary_size: int) -> dict[str, torch.Size]:
    """The shapes of a model's weights by name, in its order; a tied head counts as the embedding."""
    return _shapes(_without_weights(config, vocabulary_size))


def _without_weights(config: ModelConfig, vocabulary_size: int) -> Transformer:
    with torch.device("meta"):
        return Transformer(config, vocabulary_size)


def _shapes(model: Transformer) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in model.named_parameters()}


def build_model(
    config: ModelConfig,
    vocabulary_size: int,
    weights: Iterable[tuple[str, Tensor]],
    hold: Hold | None = None,
) -> Transformer:
    """A model with these weights by name, in any order, float32 on the CPU: beside it there are one or two of them at a time.

    Args:
        weights: all of them; of a tied head that of the embedding.
        hold: how the matrices of the blocks are held, from when each is there, if it is not so.

    Raises:
        ValueError: if a weight is missing, too many, or of another shape.
    """
    model = _without_weights(config, vocabulary_size)
    shapes = _shapes(model)
    for name, value in weights:
        if shapes.pop(name, None) != value.shape:
            raise ValueError(f"the weight {name} has no place in this model, or another shape")
        place, _, own = name.rpartition(".")
        layer = model.get_submodule(place)
        setattr(layer, own, nn.Parameter(value))
        if hold and isinstance(layer, nn.Linear) and name.startswith("blocks."):
            model.set_submodule(place, hold(layer))
    if shapes:
        raise ValueError(f"the weight {next(iter(shapes))} is missing")
    if config.tie_embeddings:
        model.lm_head.weight = model.embedding.weight
    model.fill_tables()
    return model


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a trained model in float32, one after another, none a view of the file; a tied head is that of the embedding."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            yield name, file.get_tensor(name).to(torch.float32, copy=True)


def weights_digest(model: Transformer) -> str:
    """SHA-256 over names and float32 values of all weights: says whether two models are the same."""
    return _digest(sorted(model.state_dict().items()))


def folder_digest(folder: Path) -> str:
    """`weights_digest` of the trained model below `folder`, of which one weight is read at a time."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        places = {name: name for name in file.keys()}  # noqa: SIM118 - it is no mapping
        places.setdefault("lm_head.weight", "embedding.weight")
        return _digest((name, file.get_tensor(place)) for name, place in sorted(places.items()))


def _digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in weights:
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
