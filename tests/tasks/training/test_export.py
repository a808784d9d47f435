"""Exported models compute what ours compute, in stock classes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.config import ModelConfig
from model.hugging_face import build_hugging_face_model
from model.weights import load_model
from tests.model.test_transformer import VARIANTS, build


def save(folder: Path, model) -> None:
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    description = {"model": model.config.model_dump(), "vocabulary_size": 50, "tokenizer_sha256": "x"}
    (folder / "model.json").write_text(json.dumps(description))


EXPECTED = ["Llama", "Qwen3", "Llama", "Arcee", "StableLm", "Starcoder2", "Llama"]


@pytest.mark.parametrize(("fields", "name"), list(zip(VARIANTS, EXPECTED, strict=True)))
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
@pytest.mark.parametrize("theta", [10_000.0, 100.0])
def test_logits_are_equal(tmp_path: Path, fields: dict, name: str, epsilon: float, theta: float):
    save(tmp_path, build(norm_epsilon=epsilon, rope_theta=theta, **fields))
    ours, theirs = build_hugging_face_model(tmp_path, 0)
    assert type(theirs).__name__ == f"{name}ForCausalLM"
    theirs.save_pretrained(tmp_path / "hf")
    reloaded = type(theirs).from_pretrained(tmp_path / "hf").eval()
    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = ours(tokens)
        assert (expected - reloaded(tokens).logits).abs().max() < 1e-4
    assert expected.std() > 0.1


def test_weights_come_back(tmp_path: Path):
    model = build(tie_embeddings=True)
    save(tmp_path, model)
    loaded, _ = load_model(tmp_path)
    assert loaded.config == ModelConfig(**model.config.model_dump())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
