"""train_model: pre-train the Transformer with DeepSpeed under torchrun."""

from pathlib import Path

from model.errors import InputError
from model.objectives.text import TextObjective
from model.tokenizer import tokenizer_sha256
from model.tokens import open_tokens
from tasks.engine.machine import Machine
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.training.settings import TrainModelConfig
from tasks.training.torchrun import train_under_torchrun


@stage(
    libraries=("torch", "deepspeed", "numpy", "pyarrow", "xxhash", "safetensors", "tokenizers"),
    retries=2,
    role="train",
)
def train_model(
    config: TrainModelConfig, tokens: Artifact, tokenizer: Artifact, out: Path, work: Path, machine: Machine
) -> Metrics:
    """Write model.safetensors (float32), model.json, and figures/metrics.jsonl.

    Goes on from the newest valid checkpoint below `work`.

    Raises:
        InputError: if text or machine do not fit the recipe, or the loss is not finite.
        StageFailed: if a training process died; another attempt goes on from its checkpoint.
    """
    objective, digest = TextObjective(), tokenizer_sha256(tokenizer.path)
    shards = [open_tokens(path / "train.arrow", digest) for path in tokens.shards]
    n_windows = len(objective.open_rows(shards, config.model.context_length))
    if n_windows * config.model.context_length < config.train.tokens_per_batch:
        n_tokens = sum(shard.header.n_tokens for shard in shards)
        raise InputError(
            f"the training text has {n_tokens} tokens, less than one batch of train_model.tokens_per_batch "
            f"{config.train.tokens_per_batch}: add text or lower tokens_per_batch"
        )
    return train_under_torchrun(config, objective, tokens, tokenizer, out, work, machine)
