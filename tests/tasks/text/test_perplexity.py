"""A language model as a judge of text: bits for a byte, in a recipe by what is in its folder."""

import json
import math
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from pydantic import ValidationError

from model.errors import InputError
from tasks.engine.stage import Shard
from tasks.text.clean import CleanConfig, clean
from tasks.text.perplexity import bits_per_byte
from tasks.text.plug_ins import PlugIn
from tests.tasks.text.test_documents import verdicts, write_shard

USE = "tasks.text.perplexity:Perplexity"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that finds every byte but the letter e equally likely, in a context of 16 tokens."""
    made = tmp_path_factory.mktemp("model")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: place for place, character in enumerate([*alphabet, "<|endoftext|>"])}
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>").save_pretrained(
        made
    )
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=16,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    model.save_pretrained(made)
    return made


def fields(folder: Path, **more: float) -> dict:
    return PlugIn(use=USE, fields={"model": str(folder), **more}).fields


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary(folder: Path):
    digest = fields(folder, max_bits_per_byte=9)["digest"]
    texts = ["some words", "", "é", "a longer text than the context of the model has places for " * 3]
    found = bits_per_byte(str(folder), digest, texts, 100)
    expected = math.log2(257)
    assert found == pytest.approx([expected, 0.0, expected, expected], abs=1e-3)


def test_what_is_likely_and_unlikely_is_dropped_by_the_stage(folder: Path, tmp_path: Path):
    shard = write_shard(tmp_path / "in", {"a": "some words of a text that is kept or not"})
    for limits, reason in (
        ({"max_bits_per_byte": 7.9}, "unlikely under the model"),
        ({"min_bits_per_byte": 8.1}, "too likely under the model"),
        ({"min_bits_per_byte": 7.9, "max_bits_per_byte": 8.1}, None),
    ):
        config = CleanConfig.model_validate(
            {"filters": {"likely": {"use": USE, "fields": {"model": str(folder), **limits}}}}
        )
        assert "tasks.text.perplexity" in config.modules
        out = tmp_path / str(reason)
        clean.fn(config, documents=Shard(shard), out=out)
        (verdict,) = verdicts(out)
        assert verdict["reason"] == reason
        if reason:
            assert verdict["value"] == pytest.approx(math.log2(257), abs=1e-3)
            assert verdict["field"].startswith("clean.filters.likely.m")


def test_the_model_is_in_the_recipe_by_its_content(folder: Path, tmp_path: Path):
    plug_in = PlugIn(use=USE, fields={"model": str(folder), "max_bits_per_byte": 9})
    assert set(plug_in.fields["libraries"]) == {"torch", "transformers", "tokenizers"}
    assert PlugIn.model_validate(json.loads(plug_in.model_dump_json())) == plug_in
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    first = fields(copy, max_bits_per_byte=9)
    assert first["digest"] == plug_in.fields["digest"]
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert fields(copy, max_bits_per_byte=9)["digest"] != first["digest"]
    with pytest.raises(InputError, match="is not the one that the recipe was read with"):
        bits_per_byte(str(copy), first["digest"], ["x"], 10)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model": "nowhere", "max_bits_per_byte": 3}, "'nowhere' is no Hugging Face folder"),
        ({"model": "{folder}"}, "neither max_bits_per_byte nor min_bits_per_byte is set"),
        ({"max_bits_per_byte": 3}, "model: Field required"),
    ],
)
def test_what_cannot_judge_is_said_when_the_recipe_is_read(folder: Path, values: dict, sentence: str):
    given = {name: str(folder) if value == "{folder}" else value for name, value in values.items()}
    with pytest.raises(ValidationError, match=sentence):
        PlugIn(use=USE, fields=given)
