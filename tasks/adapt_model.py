"""adapt_model: continued pre-training of a base model on the text of a domain, with old text replayed."""

import json
import math
from pathlib import Path

from model.config import ModelConfig, TrainConfig
from tasks.errors import InputError
from tasks.finetune_model import FinetuneConfig, describe_adapter
from tasks.machine import Machine
from tasks.stage import Artifact, Metrics, stage
from tasks.train_model import TrainModelConfig, train_under_torchrun
from tasks.train_tokenizer import tokenizer_sha256


class AdaptModelConfig(FinetuneConfig):
    """The section finetune of a recipe that has text."""


@stage(libraries=("torch", "deepspeed", "numpy", "pyarrow", "xxhash", "safetensors", "tokenizers", "peft"), retries=2)
def adapt_model(
    config: AdaptModelConfig, base: Artifact, tokens: Artifact, replay: Artifact, tokenizer: Artifact,
    out: Path, work: Path, machine: Machine,
) -> Metrics:  # fmt: skip
    """Write what finetune_model writes.

    Args:
        tokens: those of the domain's text, made by the base's tokenizer.
        replay: those that the base was trained on; the domain's again if replay_weight is 0.

    Raises:
        InputError: if there is too little text for a window, or machine and recipe do not fit.
    """
    from model.batches import Windows
    from model.tokens import open_tokens

    description = json.loads((base.path / "model.json").read_text())
    model = ModelConfig.model_validate(description["model"])
    digest = tokenizer_sha256(tokenizer.path)
    if description["tokenizer_sha256"] != digest:
        raise InputError("the tokenizer is not the one that the base was trained with: take that of the base")
    if config.tokens_per_batch % model.context_length:
        raise InputError(
            f"finetune.tokens_per_batch ({config.tokens_per_batch}) must be a multiple of the base's context of {model.context_length} tokens"
        )
    n_windows = len(Windows([open_tokens(path / "train.arrow", digest).ids for path in tokens.shards], model.context_length))
    if not n_windows:
        raise InputError(
            f"the domain's text is less than one window of the base's context ({model.context_length} tokens): add text"
        )
    places = config.epochs * n_windows * model.context_length / (1 - config.replay_weight)
    n_steps = max(1, math.ceil(places / config.tokens_per_batch))
    fields = config.model_dump(exclude={"epochs", "adapter", "beta", "replay_weight"})
    train = TrainConfig(tokens=n_steps * config.tokens_per_batch, decay_fraction=1 - config.warmup_fraction, **fields)
    replayed = [path / "train.arrow" for path in replay.shards] if config.replay_weight else []
    figures = train_under_torchrun(
        TrainModelConfig(model=model, train=train), tokens, tokenizer, out, work, machine,
        start=base.path, adapter=config.adapter, replay_shards=replayed, replay_weight=config.replay_weight,
    )  # fmt: skip
    if config.adapter:
        describe_adapter(out, config.adapter, base.path)
    return figures
