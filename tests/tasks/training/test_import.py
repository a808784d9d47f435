"""A Hugging Face folder comes in and goes out bit by bit as it was; what cannot be ours is refused with a sentence."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from model.errors import InputError
from model.hugging_face import hugging_face_config, load_hugging_face_folder, model_config_of
from model.tokenizer import TOKEN_BYTES
from model.weights import load_model
from tasks.engine.stage import Artifact
from tasks.training.import_model import bytes_of_tokens, import_model

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 16,
    "initializer_range": 0.2,
}
KINDS = {
    "llama": lambda **fields: transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SHAPE, **fields})),
    "qwen3": lambda **fields: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**SHAPE, **fields})),
}


def save(folder: Path, kind: str, **fields) -> Path:
    torch.manual_seed(0)
    KINDS[kind](**fields).eval().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_import_and_export_are_inverse(kind: str, tied: bool, tmp_path: Path):
    from model.hugging_face import hugging_face_weights

    folder = save(tmp_path, kind, tie_word_embeddings=tied)
    model = load_hugging_face_folder(folder)
    assert model.config.d_head == 16
    assert model.config.tie_embeddings == tied
    back = hugging_face_weights(model.state_dict(), model.config)
    original = load_file(folder / "model.safetensors")
    for name, value in original.items():
        assert torch.equal(back[name], value), name
    assert set(back) - set(original) == ({"lm_head.weight"} if tied else set())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    "scaling",
    [
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        {"rope_type": "linear", "factor": 4.0},
    ],
)
def test_a_lengthened_context_is_computed_as_stock_transformers_does(tmp_path: Path, scaling: dict):
    rope = {"rope_theta": 500.0, **scaling}
    folder = save(tmp_path, "llama", rope_parameters=rope)
    model = load_hugging_face_folder(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert (model(tokens) - expected).abs().max() < 1e-4
        plain = model.config.model_copy(update={"rope_scaling": None})
        model.config = plain
        model.fill_tables()
        assert (model(tokens) - expected).abs().max() > 1e-2
    read = model_config_of(json.loads((folder / "config.json").read_text()), "config.json")
    assert read.rope_scaling.kind == scaling["rope_type"]
    again = hugging_face_config(read, 300, 0)
    assert again.rope_parameters == theirs.config.rope_parameters


def test_the_stage_makes_a_model_and_a_tokenizer_of_ours(tmp_path: Path, tokenizer: Artifact):
    folder, out = tmp_path / "folder", tmp_path / "out"
    vocabulary = len(json.loads((tokenizer.path / TOKEN_BYTES).read_text()))
    save(folder, "llama", vocab_size=vocabulary + 5)
    (folder / "tokenizer.json").write_bytes((tokenizer.path / "tokenizer.json").read_bytes())
    out.mkdir()
    figures = import_model.fn(folder=Artifact(folder), out=out)
    model, description = load_model(out)
    assert description["vocabulary_size"] == vocabulary + 5
    assert figures["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (
        json.loads((out / TOKEN_BYTES).read_text())
        == json.loads((tokenizer.path / TOKEN_BYTES).read_text()) + [0] * 5
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_type 'yarn'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 9.0}},
            "low_frequency_factor (9) must be below",
        ),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_key_value_heads": 3}, "n_heads (4) must be divisible by n_kv_heads (3)"),
    ],
)
def test_what_cannot_be_ours_is_refused(fields: dict, sentence: str):
    with pytest.raises(InputError, match=r"config\.json") as caught:
        model_config_of({**SHAPE, "model_type": "llama", **fields}, "config.json")
    assert sentence in str(caught.value)


def test_pickles_and_halves_are_refused(tmp_path: Path):
    folder = save(tmp_path, "llama")
    (folder / "model.safetensors").rename(folder / "model.bin")
    with pytest.raises(InputError, match="holds no safetensors"):
        load_hugging_face_folder(folder)
    (folder / "model.bin").rename(folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"layers.2.* is missing"):
        load_hugging_face_folder(folder)


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "Unigram", "vocab": []}, "decoder": None})
    )
    with pytest.raises(InputError, match="no byte-level BPE tokenizer"):
        bytes_of_tokens(tmp_path, 10)


def test_a_tokenizer_of_another_model_is_refused(tokenizer: Artifact):
    with pytest.raises(InputError, match="it is not the tokenizer of this model"):
        bytes_of_tokens(tokenizer.path, 500)
