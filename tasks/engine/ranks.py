"""Ranks: processes that do one job together, started by torchrun, on this computer or on several.

python -m tasks.engine.ranks launch N JOB     torchrun with N ranks, or the only rank, bound to its parent
python -m tasks.engine.ranks rank JOB         one rank
python -m tasks.engine.ranks node TEAM INDEX   one node of several: checks, and torchrun, watched
python -m tasks.engine.ranks torchrun N JOB RENDEZVOUS...   its torchrun

Each is bound to its parent before it imports torch, which takes seconds in which a parent may be killed.
"""

import importlib
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.errors import InputError, StageFailed
from model.files import read_json, write_whole
from tasks.engine import process
from tasks.engine.code import import_from_here
from tasks.engine.failures import describe
from tasks.engine.leases import store_may_be_silent
from tasks.engine.progress import progress

RESULT, ERRORS, PROGRESS = "result.json", "error-*.json", "progress.json"
PRESENCE = "rank-*.json"
"""What a rank does, and where: host, phase, and since when."""
_PARENT = "SCRATCHLM_LAUNCHER"
_PEER = re.compile(
    r"closed by peer|reset by peer|broken pipe|NCCL|gloo|Socket|connect(ion)? (timed out|refused)", re.I
)
"""What torch.distributed says, as plain RuntimeErrors of gloo too, when it cannot reach another rank."""

_LOST = "another rank is gone"
_NEWS_SECONDS = 1.0

Kind = Literal["input", "retry", "stage"]
"""Of a failure: another attempt cannot help; will help; is not known to."""


class Job(BaseModel):
    """What all ranks do.

    Attributes:
        call: module:function, which each rank calls with the arguments and its `Rank`. What the first rank gets is the result.
        arguments: JSON values.
        work: folder of this attempt, in which ranks leave word.
        folder: that paths which are not absolute count from.
    """

    model_config = ConfigDict(extra="forbid")
    call: str
    arguments: dict[str, Any]
    work: Path
    folder: Path = Field(default_factory=Path.cwd)

    @property
    def function(self) -> "Callable[[dict[str, Any], Rank], Any]":
        """What is called."""
        module, name = self.call.split(":")
        called: Callable[[dict[str, Any], Rank], Any] = getattr(importlib.import_module(module), name)
        return called


class Rank:
    """One of the processes that do a job together.

    Args:
        work: folder in which it says what it does; None for the only one, in a process that is watched itself.

    Attributes:
        number: 0 for the first.
        count: how many there are, on all computers.
    """

    def __init__(self, work: Path | None = None) -> None:
        self.work = work
        self.number = int(os.environ["RANK"]) if work else 0
        self.count = int(os.environ["WORLD_SIZE"]) if work else 1
        self.phase, self.told_at = "load", 0.0

    def enter(self, phase: str) -> None:
        """Say what it begins with."""
        self.phase, self.told_at = phase, time.monotonic()
        if self.work:
            told = {"host": socket.gethostname(), "phase": phase, "since_ns": time.time_ns()}
            with store_may_be_silent(or_full=True):
                write_whole(self.work / PRESENCE.replace("*", str(self.number)), json.dumps(told))

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Say how far all of them are: the first one speaks, and of each it is seen that it moves."""
        if self.work is None:
            progress(done, total, unit, note)
            return
        if self.number == 0:
            with store_may_be_silent(or_full=True):
                write_whole(self.work / PROGRESS, json.dumps((done, total, unit, note)))
        if time.monotonic() - self.told_at > _NEWS_SECONDS:
            self.enter(self.phase)


def launch(n_ranks: int, job: str) -> None:
    """Become torchrun, or the only rank. No restarts: a dead rank ends all, and the stage is tried again."""
    if n_ranks == 1:
        os.environ.update(only_rank())
        _do(Path(job))
        return

    run_torchrun(["--standalone"], n_ranks, job)


def run_torchrun(rendezvous: list[str], n_ranks: int, job: str) -> None:
    """Become the torchrun of so many ranks here.

    Args:
        rendezvous: how it finds those of other nodes.
    """
    from torch.distributed import run

    os.environ[_PARENT] = str(os.getpid())
    # Its own folder of logs would stay in /tmp.
    own = ["--max-restarts=0", f"--nproc-per-node={n_ranks}", f"--log-dir={Path(job).parent / 'torchrun'}"]
    ranks = [*own, "-m", "tasks.engine.ranks", "rank", job]
    run.main([*rendezvous, *ranks])


def explain_failure(error: Exception) -> tuple[Kind, str]:
    """Whose fault the failure of a rank is, and a sentence.

    A rank that is killed takes the others with it: they find their connections closed, which is no fault of theirs.
    """
    import torch.distributed as dist

    sentence = f"{type(error).__name__}: {error}"
    if isinstance(error, InputError):
        return "input", str(error)
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _PEER.search(sentence)):
        return "retry", f"{_LOST} ({sentence})"
    if isinstance(error, OSError | MemoryError | StageFailed):
        described = describe(error)
        return "retry" if described["retryable"] else "stage", described["error"]
    return "stage", sentence


def first_error(work: Path) -> tuple[Kind, str] | None:
    """Why a job failed, and on which rank: what the first that failed says; None if none came to say it.

    One that lost another rank says so, and speaks only if nobody has another reason; then the rank that ended without a
    word is named.
    """
    # Whose clock is ahead is not who failed first: that of the file system tells.
    errors = {
        path: (_written_at(path, error[0]), *error[1:])
        for path in work.glob(ERRORS)
        if (error := read_json(path))
    }
    if not errors:
        return None
    path, (_, kind, sentence) = min(
        errors.items(), key=lambda item: (item[1][2].startswith(_LOST), item[1][1] == "retry", item[1])
    )
    presence = presences(work)
    failed = {int(path.stem.removeprefix("error-")) for path in errors}
    silent = sorted(presence.keys() - failed)
    if kind == "retry" and silent and sentence.startswith(_LOST):
        sentence = f"{where(silent[0], presence)} ended without a word; {sentence}"
    elif len(presence) > 1:
        sentence = f"{where(int(path.stem.removeprefix('error-')), presence)}: {sentence}"
    return kind, sentence


def _written_at(path: Path, told_ns: int) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return told_ns


def presences(work: Path) -> dict[int, dict[str, Any]]:
    """What each rank does, and where, as far as ranks said; since when, by the clock of the file system they have in common."""
    found = {}
    for path in work.glob(PRESENCE):
        with suppress(OSError):
            if seen := read_json(path):
                since = {"since_ns": path.stat().st_mtime_ns}
                found[int(path.stem.removeprefix("rank-"))] = {**seen, **since}
    return found


def where(rank: int, presence: dict[int, dict[str, Any]]) -> str:
    """A rank with its host and its phase, for a person."""
    seen = presence.get(rank)
    return f"rank {rank} on {seen['host']} ({seen['phase']})" if seen else f"rank {rank}"


def only_rank() -> dict[str, str]:
    """What torchrun would say to rank 0 of 1."""
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(process.free_port()),
    }


def rank(job_path: Path) -> None:
    """Do a job as the rank that the environment names; rank 0 writes progress and result, a failing rank its error."""
    process.die_with_parent(int(os.environ.pop(_PARENT)))
    _do(job_path)


def _leave_the_others(error: Exception) -> None:
    """End this process at once if it belongs to a group still, which on its way out would wait for ranks that wait for it."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _do(job_path: Path) -> None:
    job = Job.model_validate_json(job_path.read_bytes())
    own = Rank(job.work)
    try:
        if job.folder.is_dir():  # other computers may do without it
            os.chdir(job.folder)
        import_from_here()
        own.enter("load")
        result = job.function(job.arguments, own)
    except Exception as error:
        told = (time.time_ns(), *explain_failure(error))
        try:
            write_whole(job.work / ERRORS.replace("*", str(own.number)), json.dumps(told))
        finally:
            _leave_the_others(error)
        if isinstance(error, InputError | StageFailed):
            raise SystemExit(1) from None  # it is told, and no fault of the code
        raise
    if own.number == 0:
        write_whole(job.work / RESULT, json.dumps(result))


if __name__ == "__main__":
    process.adopt()
    match sys.argv[1]:
        case "launch":
            if sys.argv[2] == "1":
                process.exit_on_sigterm()  # so that what it has below /tmp goes
            launch(int(sys.argv[2]), sys.argv[3])
        case "torchrun":
            run_torchrun(sys.argv[4:], int(sys.argv[2]), sys.argv[3])
        case "node":
            from tasks.engine.team import run_node

            process.exit_on_sigterm()
            sys.exit(run_node(Path(sys.argv[2]), int(sys.argv[3])))
        case _:
            process.exit_on_sigterm()
            rank(Path(sys.argv[2]))
