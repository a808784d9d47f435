"""train_model: pre-train the Transformer with DeepSpeed under torchrun."""

from pathlib import Path

from model.objectives.text import TextObjective
from model.tokenizer import tokenizer_sha256
from model.tokens import open_tokens
from tasks.engine.machine import Machine
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.training.settings import TrainModelConfig, check_corpus
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
    digest = tokenizer_sha256(tokenizer.path)
    check_corpus(config, [open_tokens(path / "train.arrow", digest) for path in tokens.shards])
    return train_under_torchrun(config, TextObjective(), tokens, tokenizer, out, work, machine)
