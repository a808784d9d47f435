"""A job on ranks: started where the machine says, watched, and its result brought back."""

import json
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError, StageFailed
from model.files import read_json
from model.machine import TrainingMachine
from tasks.engine import ranks
from tasks.engine.clusters import CutOff
from tasks.engine.launcher import HereLauncher, Launcher
from tasks.engine.leases import TOUCH_SECONDS
from tasks.engine.machine import Machine
from tasks.engine.progress import progress
from tasks.engine.team import TEAM_FOLDER, Team
from tasks.engine.team_launchers import launch_team
from tasks.engine.worker import examine

JOB, _ATTEMPT = "job.json", "ranks-"
_STOP_SECONDS, _LEAVING_SECONDS = 20.0, 60.0
_PHASE_PATIENCE = {"step": 1, "load": 4, "validation": 4, "save": 4}
"""How much longer than a step each phase of a rank may take."""


def has_ranks_elsewhere(machine: Machine) -> bool:
    """Whether a job runs on other computers, or on this one and others."""
    return not machine.in_process and (machine.nodes > 1 or bool(machine.nodes and not machine.is_local))


def _launch(job_path: Path, work: Path, resolved: TrainingMachine, machine: Machine) -> Launcher:
    """Start the ranks: on this computer, or on as many nodes as the machine has."""
    if not has_ranks_elsewhere(machine):
        arguments = [sys.executable, "-m", ranks.__name__, "launch", str(resolved.ranks), str(job_path)]
        return HereLauncher(arguments, resolved.device)
    # The working folder of a stage lies in its store, under the name of its lock.
    store, identity = work.parent.parent, f"{work.name[-12:]}-{uuid.uuid4().hex[:8]}"
    team = Team(
        identity=identity,
        key=work.name[-32:],
        store=store,
        job=job_path,
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
        told = f"no rank has begun for {seconds:.0f} seconds (machine.hang_seconds {hang_seconds:g}, times {patience}); they were ended"
        return told if seconds > hang_seconds * patience else None
    slowest = min(presence, key=lambda rank: presence[rank]["since_ns"])
    patience = max(_PHASE_PATIENCE.get(seen["phase"], 1) for seen in presence.values())
    if seconds <= hang_seconds * patience:
        return None
    return (
        f"the ranks made no step for {seconds:.0f} seconds (machine.hang_seconds {hang_seconds:g}, times {patience} in this phase) "
        f"and were ended: longest without news is {ranks.where(slowest, presence)}"
    )


def _watch(launcher: Launcher, work: Path, hang_seconds: float) -> int:
    """Wait for the ranks, and tell how far they are; returns the status with which they ended."""
    last_change, last_seen = time.monotonic(), None
    looked, finished = last_change, None
    missed: tuple[str, str] | None = None
    while (status := launcher.poll()) is None:
        time.sleep(0.2)
        if finished is None and (work / ranks.RESULT).exists():
            finished = time.monotonic()
        if finished:
            # What a library does when its process ends may wait for a server for ever.
            if time.monotonic() - finished > _LEAVING_SECONDS:
                return 0
            continue
        steps = read_json(work / ranks.PROGRESS)
        if steps:
            progress(*steps)
        elif not ranks.presences(work) and (told := launcher.told()):
            progress(0, 0, "ranks", told)
            last_change = time.monotonic()  # computers are waited for, and ranks are not
        told_ns = (work / ranks.PROGRESS).stat().st_mtime_ns if steps else 0
        seen = (told_ns, ranks.presences(work))
        if seen != last_seen or launcher.is_paused():
            last_change, last_seen = time.monotonic(), seen
        stuck = _stuck(work, time.monotonic() - last_change, hang_seconds)
        if time.monotonic() - looked > TOUCH_SECONDS:
            looked, missed_before, missed = time.monotonic(), missed, launcher.lost()
            # Twice: a store that did not answer for a while makes all look lost to whoever looks first.
            if missed and missed == missed_before:
                stuck = stuck or _told_of_lost(*missed, ranks.presences(work))
        if stuck:
            raise StageFailed(stuck, retryable=True)
    return status


def _told_of_lost(host: str, told: str, presence: dict[int, dict[str, Any]]) -> str:
    """What to say of a computer that was lost, with the ranks that were on it and what they did."""
    there = [ranks.where(rank, presence) for rank, seen in sorted(presence.items()) if seen["host"] == host]
    return f"{told}; there ran {', '.join(there)}" if there else told


def run_on_ranks(
    function: Callable[[dict[str, Any], ranks.Rank], Any],
    arguments: dict[str, Any],
    resolved: TrainingMachine,
    machine: Machine,
    work: Path,
    *,
    goes_on: bool = False,
) -> Any:
    """Call a function on every rank of a machine; returns what the first one gets.

    Args:
        function: of a module. It is given the arguments, and its rank.
        arguments: JSON values.
        resolved: the machine with its device and its ranks.
        work: the working folder of a stage.
        goes_on: whether another call goes on from where the work of one was that was ended.

    Raises:
        InputError: if a rank found that recipe or data make it impossible.
        StageFailed: if a rank failed, was killed, or hung.
    """
    reached = 0
    while True:
        ended = _run_once(function, arguments, resolved, machine, work)
        if not isinstance(ended, _Ended):
            return ended
        # An end from outside is no failed attempt, as long as each job comes further than the one before.
        if goes_on and ended.reached > reached:
            reached = ended.reached
            print("the cluster ended the job before the work was done: it goes on in another one", flush=True)
            continue
        least = f"any further than the one before ({reached:,})" if reached else "to its first step"
        before = f"before it came {least if goes_on else 'to its end'}"
        if ended.why is CutOff.TIME:
            raise StageFailed(
                f"the time of its job was over {before}: raise machine.cluster.time", retryable=False
            )
        raise StageFailed(f"its job was ended for another one's sake {before}", retryable=True)


@dataclass
class _Ended:
    """A job that was ended from outside.

    Attributes:
        reached: how far it was, by its own count.
    """

    why: CutOff
    reached: int


def _run_once(
    function: Callable[[dict[str, Any], ranks.Rank], Any],
    arguments: dict[str, Any],
    resolved: TrainingMachine,
    machine: Machine,
    work: Path,
) -> Any:
    """`run_on_ranks` in one job; an `_Ended` if that was ended from outside."""
    for former in work.glob(f"{_ATTEMPT}*"):
        shutil.rmtree(former, ignore_errors=True)
    # Each attempt has a folder of its own: ranks of a former one, elsewhere, may not have ended yet.
    attempt = work / f"{_ATTEMPT}{uuid.uuid4().hex[:8]}"
    attempt.mkdir(mode=0o700)
    job = ranks.Job(call=f"{function.__module__}:{function.__name__}", arguments=arguments, work=attempt)
    (attempt / JOB).write_text(job.model_dump_json())
    launcher = _launch(attempt / JOB, work, resolved, machine)
    try:
        status = _watch(launcher, attempt, machine.hang_seconds)
    finally:
        launcher.stop(_STOP_SECONDS)
    if not (attempt / ranks.RESULT).exists() and (why := launcher.cut_off()):
        return _Ended(why, int((read_json(attempt / ranks.PROGRESS) or [0])[0]))
    error = ranks.first_error(attempt)
    if error:
        kind, message = error
        raise InputError(message) if kind == "input" else StageFailed(message, retryable=kind == "retry")
    if status or not (attempt / ranks.RESULT).exists():
        presence = ranks.presences(attempt)
        there = "; ".join(ranks.where(rank, presence) for rank in sorted(presence))
        raise StageFailed(
            f"a rank ended with status {status}{f' ({there})' if there else ''}", retryable=True
        )
    return json.loads((attempt / ranks.RESULT).read_text())


def call_on_ranks(
    function: Callable[[dict[str, Any], ranks.Rank], Any],
    arguments: dict[str, Any],
    machine: Machine,
    work: Path,
) -> Any:
    """Call a function on the ranks that train, each with its share of what is to be read; returns what the first one gets.

    With the machine among its arguments. In this process where there is only one rank. Computers on which somebody runs
    `scratchlm join` take part in trainings alone; a cluster's nodes in this, too.
    """
    resolved = machine.training()
    if machine.nodes > 1 and machine.is_local and not machine.in_process:
        resolved = resolved.model_copy(update={"ranks": resolved.ranks // machine.nodes})
        machine = machine.model_copy(update={"nodes": 0})
    arguments = arguments | {"machine": resolved.model_dump(mode="json")}
    if resolved.ranks == 1 and not has_ranks_elsewhere(machine):
        return function(arguments, ranks.Rank())
    return run_on_ranks(function, arguments, resolved, machine, work)
