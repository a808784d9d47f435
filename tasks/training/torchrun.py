"""How a stage trains: torchrun with its ranks, watched, or this process for a debugger."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from model.base_config import Config
from model.errors import InputError, StageFailed
from model.files import read_json
from model.machine import TrainingMachine
from model.tokenizer import TOKEN_BYTES, tokenizer_sha256
from model.train_spec import METRICS, TrainSpec
from tasks.engine import process
from tasks.engine.machine import Machine
from tasks.engine.progress import progress
from tasks.engine.stage import Artifact, Metrics
from tasks.text.selection import SIDES
from tasks.training import ranks
from tasks.training.settings import TrainModelConfig, check_machine

_STOP_SECONDS = 20.0


def _run_ranks(spec_path: Path, work: Path, machine: TrainingMachine, hang_seconds: float) -> None:
    """Run torchrun until it ends.

    Raises:
        InputError: if a rank found that recipe or data make it impossible.
        StageFailed: if a rank failed, was killed, or hung.
    """
    progress_path = work / ranks.PROGRESS
    for stale in (progress_path, *work.glob(ranks.ERRORS)):
        stale.unlink(missing_ok=True)
    arguments = [sys.executable, "-m", ranks.__name__, "launch", str(machine.ranks), str(spec_path)]
    launcher = subprocess.Popen(arguments, env=process.child_environment({"DS_ACCELERATOR": machine.device}))
    last_change, last_seen = time.monotonic(), None
    try:
        while launcher.poll() is None:
            time.sleep(0.2)
            seen = read_json(progress_path)
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
    error = ranks.first_error(work)
    if error:
        kind, message = error
        raise InputError(message) if kind == "input" else StageFailed(message, retryable=kind == "retry")
    if launcher.returncode:
        raise StageFailed(f"a training process ended with status {launcher.returncode}", retryable=True)


def train_under_torchrun(
    config: TrainModelConfig,
    objective: Any,
    tokens: Artifact,
    tokenizer: Artifact,
    out: Path,
    work: Path,
    machine: Machine,
    *,
    start: Path | None = None,
    adapter: Config | None = None,
) -> Metrics:
    """Write model.safetensors (float32), model.json, and figures/metrics.jsonl.

    Goes on from the newest valid checkpoint below `work`.

    Args:
        objective: what the model is trained to do; see `model.objectives.objective.Objective`.
        start: folder of the model whose weights are the first ones; random ones if None.
        adapter: trained beside the frozen weights of `start`.

    Raises:
        InputError: if text or machine do not fit the recipe, or the loss is not finite.
        StageFailed: if a training process died; another attempt goes on from its checkpoint.
    """
    resolved = machine.training()
    check_machine(config, resolved, objective.windows_per_row)
    train_shards, validation_shards = ([path / f"{side}.arrow" for path in tokens.shards] for side in SIDES)
    spec = TrainSpec(
        model=config.model,
        train=config.train,
        machine=resolved,
        objective=objective,
        train_shards=train_shards,
        validation_shards=validation_shards,
        token_bytes=tokenizer.path / TOKEN_BYTES,
        tokenizer_sha256=tokenizer_sha256(tokenizer.path),
        vocabulary_size=len(json.loads((tokenizer.path / TOKEN_BYTES).read_text())),
        work=work,
        out=out,
        start=start,
        adapter=adapter,
    )
    if machine.in_process:
        metrics = ranks.train_here(spec)
    else:
        spec_path = work / "spec.json"
        spec_path.write_text(spec.model_dump_json())
        _run_ranks(spec_path, work, resolved, machine.hang_seconds)
        metrics = json.loads((work / ranks.RESULT).read_text())
    (out / "figures").mkdir(exist_ok=True)
    shutil.copyfile(work / METRICS, out / "figures" / METRICS)
    return metrics
