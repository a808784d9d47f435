"""train_model: pre-train the Transformer with DeepSpeed under torchrun."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from model.base_config import Config
from model.config import ModelConfig, TrainConfig, TrainingMachine
from tasks import process
from tasks.documents.files import SIDES
from tasks.errors import InputError, StageFailed
from tasks.machine import Machine
from tasks.progress import progress
from tasks.stage import Artifact, Metrics, stage
from tasks.train_tokenizer import TOKEN_BYTES, tokenizer_sha256

_STOP_SECONDS = 20.0


class TrainModelConfig(Config):
    """The shape of the model and how it is trained: the sections model and train_model of a recipe."""

    model: ModelConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        if self.train.tokens_per_batch % self.model.context_length:
            raise ValueError(
                f"train_model.tokens_per_batch ({self.train.tokens_per_batch}) must be a multiple of "
                f"model.context_length ({self.model.context_length})"
            )
        return self


def check_machine(config: TrainModelConfig, machine: TrainingMachine) -> None:
    """Refuse a machine that cannot train this model.

    Raises:
        InputError: naming field, value and mend.
    """
    windows = config.train.tokens_per_batch // config.model.context_length
    if machine.ranks and windows % machine.ranks:
        raise InputError(
            f"a batch of {windows} windows (train_model.tokens_per_batch {config.train.tokens_per_batch} / "
            f"model.context_length {config.model.context_length}) cannot be shared by machine.ranks {machine.ranks}: "
            f"take a multiple of {machine.ranks * config.model.context_length} tokens, or other ranks"
        )
    if config.train.optimizer == "muon" and machine.zero_stage:
        raise InputError(
            f"train_model.optimizer muon needs whole matrices, and machine.zero_stage {machine.zero_stage} splits them: "
            "set machine.zero_stage to 0 or train_model.optimizer to adamw"
        )


def _check_corpus(config: TrainModelConfig, tokens: Artifact, digest: str) -> None:
    from model.batches import Windows
    from model.tokens import open_tokens

    shards = [open_tokens(path / "train.arrow", digest) for path in tokens.shards]
    n_windows = len(Windows([shard.ids for shard in shards], config.model.context_length))
    wanted = config.train.tokens_per_batch // config.model.context_length
    if n_windows < wanted:
        n_tokens = sum(shard.header.n_tokens for shard in shards)
        raise InputError(
            f"the training text has {n_tokens} tokens, less than one batch of train_model.tokens_per_batch "
            f"{config.train.tokens_per_batch}: add text or lower tokens_per_batch"
        )


def _run_ranks(spec_path: Path, work: Path, machine: TrainingMachine, hang_seconds: float) -> None:
    """Run torchrun until it ends.

    Raises:
        StageFailed: if a rank failed, was killed, or hung.
    """
    from tasks import ranks

    error_path, progress_path = work / ranks.ERROR, work / ranks.PROGRESS
    error_path.unlink(missing_ok=True)
    progress_path.unlink(missing_ok=True)
    arguments = [sys.executable, "-m", ranks.__name__, "launch", str(machine.ranks), str(spec_path)]
    launcher = subprocess.Popen(arguments, env=process.child_environment({"DS_ACCELERATOR": machine.device}))
    last_change, last_seen = time.monotonic(), None
    try:
        while launcher.poll() is None:
            time.sleep(0.2)
            seen = ranks.read(progress_path)
            if seen:
                progress(*seen)
            if seen != last_seen:
                last_change, last_seen = time.monotonic(), seen
            if time.monotonic() - last_change > hang_seconds:
                raise StageFailed(
                    f"training made no step for {hang_seconds:.0f} seconds (machine.hang_seconds) and was ended",
                    retryable=True,
                )
    finally:
        process.stop(launcher, _STOP_SECONDS)
    error = ranks.read(error_path)
    if error:
        kind, message = error
        raise InputError(message) if kind == "input" else StageFailed(message, retryable=kind == "retry")
    if launcher.returncode:
        raise StageFailed(f"a training process ended with status {launcher.returncode}", retryable=True)


@stage(
    libraries=("torch", "deepspeed", "numpy", "pyarrow", "xxhash", "safetensors", "tokenizers", "peft"),
    retries=2,
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
    return train_under_torchrun(config, tokens, tokenizer, out, work, machine)


def train_under_torchrun(
    config: TrainModelConfig, tokens: Artifact, tokenizer: Artifact, out: Path, work: Path, machine: Machine, **start: Any
) -> Metrics:
    """What `train_model` does.

    Args:
        start: further fields of `TrainSpec`, for a training that does not start from random weights.
    """
    from model import train as training
    from tasks import ranks

    resolved = machine.training()
    check_machine(config, resolved)
    digest = tokenizer_sha256(tokenizer.path)
    if start.get("objective", "text") == "text":
        _check_corpus(config, tokens, digest)
    train_shards, validation_shards = ([path / f"{side}.arrow" for path in tokens.shards] for side in SIDES)
    spec = training.TrainSpec(
        model=config.model,
        train=config.train,
        machine=resolved,
        train_shards=train_shards,
        validation_shards=validation_shards,
        token_bytes=tokenizer.path / TOKEN_BYTES,
        tokenizer_sha256=digest,
        vocabulary_size=len(json.loads((tokenizer.path / TOKEN_BYTES).read_text())),
        work=work,
        out=out,
        **start,
    )
    if process.in_process:
        metrics: dict[str, Any] = ranks.train_here(spec)
    else:
        spec_path = work / "spec.json"
        spec_path.write_text(spec.model_dump_json())
        _run_ranks(spec_path, work, resolved, machine.hang_seconds)
        metrics = json.loads((work / ranks.RESULT).read_text())
    (out / "figures").mkdir(exist_ok=True)
    shutil.copyfile(work / training.METRICS, out / "figures" / training.METRICS)
    return metrics
