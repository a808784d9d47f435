"""export_model: the trained model as a Hugging Face folder that stock `transformers` loads."""

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from model.base_config import Config
from model.config import AdapterConfig, ModelConfig
from tasks.chat_template import fast_tokenizer
from tasks.errors import StageFailed
from tasks.hugging_face import build_hugging_face_model, class_name, hugging_face_names
from tasks.stage import Artifact, Metrics, stage
from tasks.train_tokenizer import TOKEN_BYTES, end_of_text, end_of_text_id, load_tokenizer, tokenizer_sha256

ADAPTER_WEIGHTS = "adapter.safetensors"
BASE = "base.json"
"""Beside an exported adapter: the digest of the base's weights."""


class ExportModelConfig(Config):
    """What is shipped, and how close the exported model must be."""

    chat: bool = Field(False, description="Ship the chat template: for a model that was trained on conversations.")
    max_logit_difference: float = Field(1e-4, gt=0, description="Largest difference of a logit in float32.")


def _card(description: dict[str, Any], n_parameters: int, name: str, end: str) -> str:
    shape = "\n".join(f"| {field} | {value} |" for field, value in description["model"].items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [scratchlm]
---

# A language model from scratch

Trained from random weights with scratchlm; {n_parameters:,} parameters, vocabulary of {description["vocabulary_size"]:,}.
It loads as `{name}ForCausalLM` with stock `transformers`. Put `{end}` before a text: each training document began with it.

| field | value |
|---|---|
{shape}

It has read nothing but its training text, and says what that text makes likely: do not rely on it for facts.
"""


def _export_adapter(trained: Path, config: ModelConfig, folder: Path) -> None:
    """Write the adapters for stock `peft` on the exported base."""
    from safetensors.torch import load_file, save_file

    from model.adapters import lora_config

    described = json.loads((trained / "adapter.json").read_text())
    adapter = AdapterConfig.model_validate(described["adapter"])
    weights = load_file(trained / ADAPTER_WEIGHTS)
    names = hugging_face_names(list(weights), config)
    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": value for name, value in zip(names, weights.values(), strict=True)},
        folder / "adapter_model.safetensors",
    )
    targets = {name.split(".")[-3] for name in names if "lora_A" in name}
    saved = lora_config(adapter, target_modules=sorted(targets), task_type="CAUSAL_LM", inference_mode=True)
    saved.save_pretrained(folder)
    (folder / BASE).write_text(json.dumps({"base_sha256": described["base_sha256"]}) + "\n")
    # `peft` writes a set, in an order that differs from process to process.
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"target_modules": sorted(targets)}, indent=2, sort_keys=True) + "\n"
    )


@stage(
    libraries=(
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
        "pyarrow",
        "deepspeed",
        "xxhash",
        "jinja2",
        "peft",
    )
)
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
    end, end_id = end_of_text(raw), end_of_text_id(raw)
    ours, theirs = build_hugging_face_model(model.path, end_id)
    theirs.generation_config = transformers.GenerationConfig(
        bos_token_id=end_id, eos_token_id=end_id, pad_token_id=end_id,
        do_sample=True, temperature=0.8, top_k=50, max_new_tokens=128,
    )  # fmt: skip
    theirs.save_pretrained(out)
    fast = fast_tokenizer(raw, chat=config.chat, context_length=ours.config.context_length)
    fast.save_pretrained(out)
    shutil.copyfile(tokenizer.path / TOKEN_BYTES, out / TOKEN_BYTES)
    if (model.path / ADAPTER_WEIGHTS).exists():
        _export_adapter(model.path, ours.config, out / "adapter")

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
    name = class_name(ours.config)
    (out / "README.md").write_text(_card(description, count_parameters(ours), name, end))
    return {"class": f"{name}ForCausalLM", "max_logit_difference": difference, "parameters": count_parameters(ours)}
