"""A trained model as a Hugging Face folder that stock `transformers` loads: what export stages write."""

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from model.base_config import Config
from model.chat_template import fast_tokenizer
from model.errors import StageFailed
from model.hugging_face import build_hugging_face_model, class_name
from model.imports import uncollected, without
from model.stock import import_transformers, load_stock_model
from model.tokenizer import TOKEN_BYTES, end_of_text, end_of_text_id, load_tokenizer, tokenizer_sha256
from tasks.engine.stage import Metrics


class ExportModelConfig(Config):
    """What is shipped, and how close the exported model must be."""

    chat: bool = Field(
        False, description="Ship the chat template: for a model that was trained on conversations."
    )
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


_MOST_CHECKED = 1024
"""Positions that are compared: a model with a context of 131,072 would need a hundred gigabytes for all of them."""


def _check_logits(ours: Any, folder: Path, bound: float) -> float:
    """Largest difference of a logit between our model and what stock `transformers` reads, on random tokens.

    Raises:
        StageFailed: if it is more than `bound`.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    length = min(ours.config.context_length, _MOST_CHECKED)
    tokens = torch.randint(ours.vocabulary_size, (2, length), generator=generator)
    reloaded = load_stock_model(folder)
    with torch.no_grad():
        difference = (ours(tokens) - reloaded(tokens).logits).abs().max().item()
    if not difference <= bound:
        raise StageFailed(f"the logits of the exported model differ by {difference:.3g}, more than {bound}")
    return difference


def write_hugging_face_folder(
    config: ExportModelConfig, trained: Path, tokenizer: Path, out: Path
) -> Metrics:
    """Write a folder for `transformers.from_pretrained`: config, safetensors, tokenizer, generation config, model card.

    Args:
        trained: folder with model.safetensors and model.json.
        tokenizer: folder with tokenizer.json and token_bytes.json.

    Raises:
        StageFailed: if model and tokenizer do not belong together, or logits of what was
            written differ from ours by more than `max_logit_difference`.
    """
    from model.transformer import count_parameters

    transformers = import_transformers()

    description = json.loads((trained / "model.json").read_text())
    if description["tokenizer_sha256"] != tokenizer_sha256(tokenizer):
        raise StageFailed(
            "the model was trained with another tokenizer than the one in the store: one of them was changed; "
            "build it again with `scratchlm task train_tokenizer RECIPE --force`"
        )
    raw = load_tokenizer(tokenizer)
    end, end_id = end_of_text(raw), end_of_text_id(raw)
    with uncollected():
        ours, theirs = build_hugging_face_model(trained, end_id)
    theirs.generation_config = transformers.GenerationConfig(
        bos_token_id=end_id,
        eos_token_id=end_id,
        pad_token_id=end_id,
        do_sample=True,
        temperature=0.8,
        top_k=50,
        max_new_tokens=128,
    )
    # To save a model, transformers looks whether DeepSpeed holds it, and imports it.
    with uncollected(), without("mlflow"):
        theirs.save_pretrained(out)
    fast = fast_tokenizer(raw, chat=config.chat, context_length=ours.config.context_length)
    fast.save_pretrained(out)
    shutil.copyfile(tokenizer / TOKEN_BYTES, out / TOKEN_BYTES)

    difference = _check_logits(ours, out, config.max_logit_difference)
    text = "The state of the union — 1, 2, 3.\n"
    if fast(text, add_special_tokens=False)["input_ids"] != raw.encode(text, add_special_tokens=False).ids:
        raise StageFailed("the exported tokenizer gives other ids than ours")
    name = class_name(ours.config)
    (out / "README.md").write_text(_card(description, count_parameters(ours), name, end))
    return {
        "class": f"{name}ForCausalLM",
        "max_logit_difference": difference,
        "parameters": count_parameters(ours),
    }
