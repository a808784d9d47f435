"""export_model: the trained model as a Hugging Face folder that stock `transformers` loads."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from model.base_config import Config
from model.config import ModelConfig
from tasks.errors import StageFailed
from tasks.stage import Artifact, Metrics, stage
from tasks.train_tokenizer import END_OF_TEXT, TOKEN_BYTES, end_of_text_id, load_tokenizer, tokenizer_sha256

if TYPE_CHECKING:
    import torch


class ExportModelConfig(Config):
    """How close the exported model must be."""

    max_logit_difference: float = Field(1e-4, gt=0, description="Largest difference of a logit in float32.")


_COMMON = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
    ".attention_norm.": ".input_layernorm.",
    ".feed_forward_norm.": ".post_attention_layernorm.",
    ".attention.": ".self_attn.",
    ".feed_forward.": ".mlp.",
    "blocks.": "model.layers.",
}


def _class_name(config: ModelConfig) -> str:
    """The stock class that computes the same function."""
    if config.norm == "layernorm":
        return "StableLm" if config.feed_forward == "swiglu" else "Starcoder2"
    if config.feed_forward == "gelu":
        return "Arcee"
    return "Qwen3" if config.qk_norm else "Llama"


def hugging_face_config(config: ModelConfig, vocabulary_size: int, end_of_text: int) -> Any:
    """Configuration of the stock class for a model of ours."""
    import transformers

    name = _class_name(config)
    fields: dict[str, Any] = {
        "vocab_size": vocabulary_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.feedforward_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.context_length,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "dtype": "float32",
        "use_cache": True,
    }
    if name in ("StableLm", "Starcoder2"):
        fields["layer_norm_eps" if name == "StableLm" else "norm_epsilon"] = config.norm_epsilon
    else:
        fields["rms_norm_eps"] = config.norm_epsilon
    if name == "StableLm":
        fields["rope_parameters"]["partial_rotary_factor"] = 1.0
        fields |= {"partial_rotary_factor": 1.0, "use_qkv_bias": False, "hidden_act": "silu"}
    if name == "Starcoder2":
        fields |= {
            "use_bias": False, "hidden_act": "gelu", "residual_dropout": 0.0, "embedding_dropout": 0.0, "sliding_window": None,
        }  # fmt: skip
    if name == "Arcee":
        fields["hidden_act"] = "gelu"
    if name in ("Qwen3", "Arcee"):
        fields["head_dim"] = config.head_dim
    return getattr(transformers, f"{name}Config")(**fields)


def hugging_face_weights(weights: dict[str, "torch.Tensor"], config: ModelConfig) -> dict[str, "torch.Tensor"]:
    """Rename our weights for the stock class; add the zero biases that it has and we do not."""
    renamed = {}
    for name, value in weights.items():
        new = name
        for ours, theirs in _COMMON.items():
            if ours.startswith(("embedding", "norm", "lm_head")):
                new = theirs if name == ours else new
            else:
                new = new.replace(ours, theirs)
        if _class_name(config) == "Starcoder2":
            new = new.replace(".mlp.up_proj.", ".mlp.c_fc.").replace(".mlp.down_proj.", ".mlp.c_proj.")
        renamed[new] = value
        if config.norm == "layernorm" and new.endswith("norm.weight"):
            renamed[new.removesuffix("weight") + "bias"] = value.new_zeros(value.shape)
    return renamed


def build_hugging_face_model(folder: Path, end_of_text: int) -> tuple[Any, Any]:
    """Our model below `folder` and the stock model with the same weights, both float32 in evaluation mode."""
    import transformers

    from model.train import load_model

    model, description = load_model(folder)
    config = hugging_face_config(model.config, description["vocabulary_size"], end_of_text)
    exported = getattr(transformers, f"{_class_name(model.config)}ForCausalLM")(config).eval()
    missing, unexpected = exported.load_state_dict(hugging_face_weights(model.state_dict(), model.config), strict=False)
    if unexpected or [name for name in missing if "rotary" not in name]:
        raise StageFailed(f"weights do not fit the stock class: missing {missing}, unexpected {unexpected}")
    return model, exported


def _card(description: dict[str, Any], n_parameters: int, name: str) -> str:
    shape = "\n".join(f"| {field} | {value} |" for field, value in description["model"].items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [scratchlm]
---

# A language model from scratch

Trained from random weights with scratchlm; {n_parameters:,} parameters, vocabulary of {description["vocabulary_size"]:,}.
It loads as `{name}ForCausalLM` with stock `transformers`. Put `{END_OF_TEXT}` before a text: each training document began with it.

| field | value |
|---|---|
{shape}

It has read nothing but its training text, and says what that text makes likely: do not rely on it for facts.
"""


@stage(libraries=("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "deepspeed", "xxhash"))
def export_model(config: ExportModelConfig, model: Artifact, tokenizer: Artifact, out: Path) -> Metrics:
    """Write a folder for `transformers.from_pretrained`: config, safetensors, tokenizer, generation config, model card.

    Raises:
        StageFailed: if model and tokenizer do not belong together, or logits of what was
            written differ from ours by more than `max_logit_difference`.
    """
    import torch
    import transformers

    from model.transformer import count_parameters

    description = json.loads((model.path / "model.json").read_text())
    if description["tokenizer_sha256"] != tokenizer_sha256(tokenizer.path):
        raise StageFailed(
            "the model was trained with another tokenizer than the one in the store: one of them was changed; "
            "build it again with `scratchlm task train_tokenizer RECIPE --force`"
        )
    raw = load_tokenizer(tokenizer.path)
    end_of_text = end_of_text_id(raw)
    ours, theirs = build_hugging_face_model(model.path, end_of_text)
    theirs.generation_config = transformers.GenerationConfig(
        bos_token_id=end_of_text, eos_token_id=end_of_text, pad_token_id=end_of_text,
        do_sample=True, temperature=0.8, top_k=50, max_new_tokens=128,
    )  # fmt: skip
    theirs.save_pretrained(out)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=ours.config.context_length,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(out)
    shutil.copyfile(tokenizer.path / TOKEN_BYTES, out / TOKEN_BYTES)

    generator = torch.Generator().manual_seed(0)
    shape = (2, ours.config.context_length)
    tokens = torch.randint(description["vocabulary_size"], shape, generator=generator)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        difference = (ours(tokens) - reloaded(tokens).logits).abs().max().item()
    if not difference <= config.max_logit_difference:
        raise StageFailed(
            f"the logits of the exported model differ by {difference:.3g}, more than {config.max_logit_difference}"
        )
    text = "The state of the union — 1, 2, 3.\n"
    if fast(text, add_special_tokens=False)["input_ids"] != raw.encode(text, add_special_tokens=False).ids:
        raise StageFailed("the exported tokenizer gives other ids than ours")
    name = _class_name(ours.config)
    (out / "README.md").write_text(_card(description, count_parameters(ours), name))
    return {"class": f"{name}ForCausalLM", "max_logit_difference": difference, "parameters": count_parameters(ours)}
