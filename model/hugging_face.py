"""Between our models and the classes of stock `transformers` that compute the same function."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from model.config import ModelConfig, RopeScaling
from model.errors import InputError, StageFailed

if TYPE_CHECKING:
    import torch

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


def class_name(config: ModelConfig) -> str:
    """The stock class that computes the same function."""
    if config.norm == "layernorm":
        return "StableLm" if config.feed_forward == "swiglu" else "Starcoder2"
    if config.feed_forward == "gelu":
        return "Arcee"
    return "Qwen3" if config.qk_norm else "Llama"


_SCALING_FIELDS = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "former_context_length": "original_max_position_embeddings",
}
"""Fields of our scaling of RoPE, and their names in transformers."""


def _rope_fields(scaling: RopeScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    names = _SCALING_FIELDS if scaling.kind == "llama3" else {"factor": "factor"}
    return {
        "rope_type": scaling.kind,
        **{theirs: getattr(scaling, ours) for ours, theirs in names.items()},
    }


def _rope_scaling_of(rope: dict[str, Any], where: str) -> RopeScaling | None:
    """How a config.json scales its frequencies.

    Raises:
        InputError: if that is not computed here.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            f"{where}: rope_type {kind!r} cannot be imported, only default, linear and llama3 on all features: take another model"
        )
    if kind == "default":
        return None
    given = {ours: rope[theirs] for ours, theirs in _SCALING_FIELDS.items() if theirs in rope}
    return RopeScaling(kind=kind, **given)


def hugging_face_config(config: ModelConfig, vocabulary_size: int, end_of_text: int) -> Any:
    """Configuration of the stock class for a model of ours."""
    import transformers

    name = class_name(config)
    fields: dict[str, Any] = {
        "vocab_size": vocabulary_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.feedforward_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.context_length,
        "rope_parameters": {"rope_theta": config.rope_theta, **_rope_fields(config.rope_scaling)},
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
            "use_bias": False,
            "hidden_act": "gelu",
            "residual_dropout": 0.0,
            "embedding_dropout": 0.0,
            "sliding_window": None,
        }
    if name == "Arcee":
        fields["hidden_act"] = "gelu"
    if name in ("Qwen3", "Arcee", "Llama"):
        fields["head_dim"] = config.head_dim
    return getattr(transformers, f"{name}Config")(**fields)


def hugging_face_names(names: list[str], config: ModelConfig) -> list[str]:
    """Names of our weights in the stock class."""
    renamed = []
    for name in names:
        new = name
        for ours, theirs in _COMMON.items():
            if ours.startswith(("embedding", "norm", "lm_head")):
                new = theirs if name == ours else new
            else:
                new = new.replace(ours, theirs)
        if class_name(config) == "Starcoder2":
            new = new.replace(".mlp.up_proj.", ".mlp.c_fc.").replace(".mlp.down_proj.", ".mlp.c_proj.")
        renamed.append(new)
    return renamed


def hugging_face_weights(
    weights: dict[str, "torch.Tensor"], config: ModelConfig
) -> dict[str, "torch.Tensor"]:
    """Rename our weights for the stock class; add the zero biases that it has and we do not."""
    renamed = {}
    for new, value in zip(hugging_face_names(list(weights), config), weights.values(), strict=True):
        renamed[new] = value
        if config.norm == "layernorm" and new.endswith("norm.weight"):
            renamed[new.removesuffix("weight") + "bias"] = value.new_zeros(value.shape)
    return renamed


def build_hugging_face_model(folder: Path, end_of_text: int) -> tuple[Any, Any]:
    """Our model below `folder` and the stock model with the same weights, both float32 in evaluation mode."""
    import transformers

    from model.weights import load_model

    model, description = load_model(folder)
    config = hugging_face_config(model.config, description["vocabulary_size"], end_of_text)
    exported = getattr(transformers, f"{class_name(model.config)}ForCausalLM")(config).eval()
    missing, unexpected = exported.load_state_dict(
        hugging_face_weights(model.state_dict(), model.config), strict=False
    )
    if unexpected or [name for name in missing if "rotary" not in name]:
        raise StageFailed(f"weights do not fit the stock class: missing {missing}, unexpected {unexpected}")
    return model, exported


_KINDS = ("llama", "qwen3", "arcee", "stablelm", "starcoder2")
# Fields of their configurations that change the function, and the only value that we compute.
_FIXED: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "partial_rotary_factor": 1.0,
    "pretraining_tp": 1,
    "quantization_config": None,
}


def model_config_of(fields: dict[str, Any], where: str) -> ModelConfig:
    """The configuration of ours that computes what a config.json says.

    Args:
        fields: config.json of a Hugging Face model.
        where: names it in errors.

    Raises:
        InputError: if no configuration of ours computes the same function; names field, value and mend.
    """
    kind = fields.get("model_type")
    if kind not in _KINDS:
        raise InputError(
            f"{where}: model_type is {kind!r}, and can be {', '.join(_KINDS)}: take a model of one of these"
        )
    for name, value in _FIXED.items():
        if name == "sliding_window" and not fields.get("use_sliding_window", True):
            continue
        if fields.get(name, value) != value:
            raise InputError(
                f"{where}: {name} is {fields[name]!r}, and only {value!r} can be imported: take another model"
            )
    rope = {
        "rope_theta": fields.get("rope_theta", 10_000.0),
        **(fields.get("rope_scaling") or {}),
        **(fields.get("rope_parameters") or {}),
    }
    gated, layer_norm = kind in ("llama", "qwen3", "stablelm"), kind in ("stablelm", "starcoder2")
    expected = ("silu",) if gated else ("gelu",)
    if kind == "arcee" and fields.get("hidden_act", "relu2") == "relu2":
        raise InputError(
            f"{where}: hidden_act is 'relu2', and only 'gelu' can be imported for arcee: take another model"
        )
    if fields.get("hidden_act", expected[0]) not in expected:
        raise InputError(
            f"{where}: hidden_act is {fields['hidden_act']!r}, and only {expected[0]!r} can be imported: take another model"
        )
    epsilon = {"stablelm": "layer_norm_eps", "starcoder2": "norm_epsilon"}.get(kind, "rms_norm_eps")
    d_model, n_heads = fields["hidden_size"], fields["num_attention_heads"]
    d_head = fields.get("head_dim") or (128 if kind == "qwen3" else None)
    try:
        return ModelConfig(
            n_layers=fields["num_hidden_layers"],
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=fields.get("num_key_value_heads"),
            d_head=d_head if d_head and d_head * n_heads != d_model else None,
            d_feedforward=fields["intermediate_size"],
            context_length=fields.get("max_position_embeddings", 2048),
            norm="layernorm" if layer_norm else "rmsnorm",
            norm_epsilon=fields.get(epsilon, 1e-6 if kind in ("llama", "qwen3") else 1e-5),
            feed_forward="swiglu" if gated else "gelu",
            qk_norm=kind == "qwen3",
            rope_theta=rope["rope_theta"],
            rope_scaling=_rope_scaling_of(rope, where),
            tie_embeddings=fields.get("tie_word_embeddings", kind == "starcoder2"),
        )
    except (KeyError, ValidationError) as error:
        sentence = (
            f"it lacks {error}"
            if isinstance(error, KeyError)
            else error.errors()[0]["msg"].removeprefix("Value error, ")
        )
        raise InputError(f"{where}: {sentence}") from None


def our_weights(folder: Path, config: ModelConfig) -> "tuple[int, Iterator[tuple[str, torch.Tensor]]]":
    """Size of the vocabulary, and the weights in the safetensors of a Hugging Face folder under our names, one after another.

    They are float32, and none is a view of its file.

    Raises:
        InputError: if there are none, or one is missing, too many, or of another shape.
    """
    import torch
    from safetensors.torch import load_file

    from model.transformer import Transformer

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no safetensors: convert the weights; pickles are never loaded")
    weights: dict[str, torch.Tensor] = {}
    for path in files:
        weights |= load_file(path)
    embedding = weights.get("model.embed_tokens.weight")
    if embedding is None:
        raise InputError(
            f"{folder}: its safetensors hold no model.embed_tokens.weight: give the folder of a whole model"
        )
    with torch.device("meta"):
        expected = Transformer(config, embedding.shape[0]).state_dict()
    if config.tie_embeddings:
        weights.pop("lm_head.weight", None)
        del expected["lm_head.weight"]
    theirs = hugging_face_weights(expected, config)
    names = dict(zip(hugging_face_names(list(expected), config), expected, strict=True))
    for name, value in theirs.items():
        if name not in weights or weights[name].shape != value.shape:
            what = (
                f"has shape {tuple(weights[name].shape)}, not {tuple(value.shape)}"
                if name in weights
                else "is missing"
            )
            raise InputError(
                f"{folder}: the weight {name} {what}: its config.json and its safetensors do not belong together"
            )
        if name not in names and weights[name].any():
            raise InputError(
                f"{folder}: the bias {name} is not zero, and our models have none: take another model"
            )
    unknown = sorted(name for name in set(weights) - set(theirs) if "rotary" not in name)
    if unknown:
        raise InputError(f"{folder}: the weight {unknown[0]} has no place in our model: take another model")

    def converted() -> "Iterator[tuple[str, torch.Tensor]]":
        for name, ours in names.items():
            yield ours, weights.pop(name).to(torch.float32, copy=True).contiguous()

    return len(embedding), converted()


def read_config(folder: Path, where: str = "") -> dict[str, Any]:
    """The fields of config.json of a Hugging Face folder.

    Args:
        where: comes before the sentence of an error, such as the field that names the folder.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{where}{folder / 'config.json'} cannot be read: give the folder of a Hugging Face model, or a run"
        ) from error


def load_hugging_face_folder(folder: Path) -> Any:
    """The model of a Hugging Face folder as ours, float32 in evaluation mode on the CPU.

    Raises:
        InputError: if it cannot be one of ours.
    """
    from model.weights import build_model

    config = model_config_of(read_config(folder), str(folder / "config.json"))
    return build_model(config, *our_weights(folder, config)).eval()
