"""train_model: pre-train the Transformer with DeepSpeed under torchrun."""

from pathlib import Path

from model.batches import Windows
from model.objectives.mixed_text import MixedTextObjective, tokens_of_source
from model.objectives.text import TextObjective
from model.tokenizer import tokenizer_sha256
from model.tokens import open_tokens
from tasks.engine.machine import Machine
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.training.mixture import epochs_by_source, windows_by_source
from tasks.training.settings import TrainModelConfig, check_corpus
from tasks.training.train_on_ranks import train_on_ranks


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
        InputError: if text, mixture or machine do not fit the recipe, or the loss is not finite.
        StageFailed: if a training process died; another attempt goes on from its checkpoint.
    """
    digest = tokenizer_sha256(tokenizer.path)
    shards = [open_tokens(path / "train.arrow", digest) for path in tokens.shards]
    check_corpus(config, shards)
    if not config.mixture.weights:
        objective = TextObjective(isolate_documents=config.train.isolate_documents)
        return train_on_ranks(config, objective, tokens, tokenizer, out, work, machine)
    per_step = config.train.tokens_per_batch // config.model.context_length
    sizes = {
        name: float(len(Windows(tokens_of_source(shards, name), config.model.context_length)))
        for name in sorted({name for _, weights in config.mixture.each() for name in weights})
    }
    phases = windows_by_source(config.mixture, sizes, config.train.n_steps, per_step)
    mixed = MixedTextObjective(phases=tuple(phases), isolate_documents=config.train.isolate_documents)
    metrics = train_on_ranks(config, mixed, tokens, tokenizer, out, work, machine)
    read = epochs_by_source(phases, sizes, config.train.n_steps * per_step)
    return {**metrics, "mixture": read}
