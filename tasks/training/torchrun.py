"""How a stage trains: torchrun with its ranks, watched, or this process for a debugger."""

import json
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from model.base_config import Config
from model.errors import InputError, StageFailed
from model.files import read_json
from model.machine import TrainingMachine
from model.tokenizer import TOKEN_BYTES, tokenizer_sha256
from model.trackers import TENSORBOARD, check_trackers
from model.train_spec import METRICS, SPIKES, TrainSpec
from tasks.engine.machine import Machine
from tasks.engine.progress import progress
from tasks.engine.stage import Artifact, Metrics
from tasks.engine.worker import examine
from tasks.text.selection import SIDES
from tasks.training import ranks
from tasks.training.fit import settled
from tasks.training.settings import TrainModelConfig, check_machine
from tasks.training.team import TEAM_FOLDER, HereLauncher, Launcher, Team, launch_team

_STOP_SECONDS = 20.0


_PHASE_PATIENCE = {"step": 1, "load": 4, "validation": 4, "save": 4}
"""How much longer than a step each phase of a rank may take."""


def _launch(spec_path: Path, work: Path, resolved: TrainingMachine, machine: Machine) -> Launcher:
    """Start the ranks: on this computer, or on as many nodes as the machine has."""
    if machine.nodes <= 1 and (machine.is_local or not machine.nodes):
        arguments = [sys.executable, "-m", ranks.__name__, "launch", str(resolved.ranks), str(spec_path)]
        return HereLauncher(arguments, resolved.device)
    # The working folder of a stage lies in its store, under the name of its lock.
    store, identity = work.parent.parent, f"{work.name[-12:]}-{uuid.uuid4().hex[:8]}"
    team = Team(
        identity=identity,
        key=work.name[-32:],
        store=store,
        spec=spec_path,
        folder=work / f"{TEAM_FOLDER}{identity}",
        lease=store / "locks" / f"{work.name}.lease",
        nodes=machine.nodes,
        ranks_per_node=resolved.ranks // machine.nodes,
        device=resolved.device,
        has=examine(store),
    )
    return launch_team(machine, team, store)


def _stuck(work: Path, seconds: float, hang_seconds: float) -> str | None:
    """What to say of ranks that have not moved for so long; None if they may take that time."""
    presence = ranks.presences(work)
    if not presence:
        patience = _PHASE_PATIENCE["load"]
        told = f"no rank has begun for {seconds:.0f} seconds (machine.hang_seconds {hang_seconds:g}, times {patience}); training was ended"
        return told if seconds > hang_seconds * patience else None
    slowest = min(presence, key=lambda rank: presence[rank]["since_ns"])
    patience = max(_PHASE_PATIENCE.get(seen["phase"], 1) for seen in presence.values())
    if seconds <= hang_seconds * patience:
        return None
    return (
        f"training made no step for {seconds:.0f} seconds (machine.hang_seconds {hang_seconds:g}, times {patience} in this phase) "
        f"and was ended: longest without news is {ranks.where(slowest, presence)}"
    )


def _run_ranks(spec_path: Path, work: Path, resolved: TrainingMachine, machine: Machine) -> None:
    """Run the ranks until they end.

    Raises:
        InputError: if a rank found that recipe or data make it impossible.
        StageFailed: if a rank failed, was killed, or hung.
    """
    progress_path = work / ranks.PROGRESS
    for stale in (progress_path, *work.glob(ranks.ERRORS), *work.glob(ranks.PRESENCE)):
        stale.unlink(missing_ok=True)
    launcher = _launch(spec_path, work, resolved, machine)
    last_change, last_seen = time.monotonic(), None
    try:
        while (status := launcher.poll()) is None:
            time.sleep(0.2)
            steps = read_json(progress_path)
            if steps:
                progress(*steps)
            elif not ranks.presences(work) and (told := launcher.told()):
                progress(0, 0, "tokens", told)
                last_change = time.monotonic()  # computers are waited for, and ranks are not
            seen = (steps, ranks.presences(work))
            if seen != last_seen:
                last_change, last_seen = time.monotonic(), seen
            stuck = _stuck(work, time.monotonic() - last_change, machine.hang_seconds)
            if stuck:
                raise StageFailed(stuck, retryable=True)
    finally:
        launcher.stop(_STOP_SECONDS)
    error = ranks.first_error(work)
    if error:
        kind, message = error
        raise InputError(message) if kind == "input" else StageFailed(message, retryable=kind == "retry")
    if status or not (work / ranks.RESULT).exists():
        presence = ranks.presences(work)
        there = "; ".join(ranks.where(rank, presence) for rank in sorted(presence))
        raise StageFailed(
            f"a training process ended with status {status}{f' ({there})' if there else ''}", retryable=True
        )


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
    model_context_length: int | None = None,
) -> Metrics:
    """Write model.safetensors (float32), model.json, and figures/metrics.jsonl.

    Goes on from the newest valid checkpoint below `work`.

    Args:
        objective: what the model is trained to do; see `model.objectives.objective.Objective`.
        start: folder of the model whose weights are the first ones; random ones if None.
        adapter: trained beside the frozen weights of `start`.
        model_context_length: context of the model that is written, if it is more than a training window.

    Raises:
        InputError: if text or machine do not fit the recipe, or the loss is not finite.
        StageFailed: if a training process died; another attempt goes on from its checkpoint.
    """
    resolved = machine.training()
    check_machine(config, resolved, objective.windows_per_row)
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
    spec = settled(spec, machine.nodes)
    if machine.in_process:
        metrics = ranks.train_here(spec)
    else:
        spec_path = work / "spec.json"
        spec_path.write_text(spec.model_dump_json())
        (work / ranks.RESULT).unlink(missing_ok=True)
        _run_ranks(spec_path, work, resolved, machine)
        metrics = json.loads((work / ranks.RESULT).read_text())
    (out / "figures").mkdir(exist_ok=True)
    for name in (METRICS, SPIKES):
        shutil.copyfile(work / name, out / "figures" / name)
    if (work / TENSORBOARD).exists():
        shutil.copytree(work / TENSORBOARD, out / "figures" / TENSORBOARD)
    return metrics
