"""How a stage trains: on the ranks of the machine, or in this process for a debugger."""

import json
import shutil
from pathlib import Path
from typing import Any

from model.base_config import Config
from model.tokenizer import TOKEN_BYTES, tokenizer_sha256
from model.trackers import TENSORBOARD, check_trackers
from model.train_spec import METRICS, SPIKES, TrainSpec
from tasks.engine.machine import Machine
from tasks.engine.on_ranks import has_ranks_elsewhere, run_on_ranks
from tasks.engine.stage import Artifact, Metrics
from tasks.text.selection import SIDES
from tasks.training.fit import settled
from tasks.training.rank import train_as_rank, train_here
from tasks.training.settings import TrainModelConfig, check_machine, machine_of_training


def train_on_ranks(
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
    model_context_length: int | None = None,
    section: str = "train_model",
) -> Metrics:
    """Write model.safetensors (float32), model.json, and figures/metrics.jsonl.

    Goes on from the newest valid checkpoint below `work`.

    Args:
        objective: what the model is trained to do; see `model.objectives.objective.Objective`.
        start: folder of the model whose weights are the first ones; random ones if None.
        adapter: trained beside the frozen weights of `start`.
        model_context_length: context of the model that is written, if it is more than a training window.
        section: of the recipe that says how it is trained.

    Raises:
        InputError: if text or machine do not fit the recipe, or the loss is not finite.
        StageFailed: if a training process died; another attempt goes on from its checkpoint.
    """
    resolved = machine_of_training(config, machine, objective.windows_per_row)
    check_machine(config, resolved, objective.windows_per_row, section)
    check_trackers(resolved.log_to)
    train_shards, validation_shards = ([path / f"{side}.arrow" for path in tokens.shards] for side in SIDES)
    window_length = config.model.context_length
    spec = TrainSpec(
        model=config.model.model_copy(update={"context_length": model_context_length or window_length}),
        context_length=window_length,
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
    spec = settled(spec, machine.nodes, is_elsewhere=has_ranks_elsewhere(machine))
    metrics = (
        train_here(spec)
        if machine.in_process
        else run_on_ranks(train_as_rank, spec.model_dump(mode="json"), resolved, machine, work, goes_on=True)
    )
    (out / "figures").mkdir(exist_ok=True)
    for name in (METRICS, SPIKES):
        shutil.copyfile(work / name, out / "figures" / name)
    if (work / TENSORBOARD).exists():
        shutil.copytree(work / TENSORBOARD, out / "figures" / TENSORBOARD)
    return metrics
