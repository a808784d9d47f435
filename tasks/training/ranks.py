"""The processes of training: torchrun, and one rank of it.

python -m tasks.training.ranks launch N SPEC     torchrun with N ranks, or the only rank, bound to its parent
python -m tasks.training.ranks rank SPEC         one rank
python -m tasks.training.ranks node TEAM INDEX   one node of several: checks, and torchrun, watched
python -m tasks.training.ranks torchrun N SPEC RENDEZVOUS...   its torchrun

Each is bound to its parent before it imports torch, which takes seconds in which a parent may be killed.
"""

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from model.errors import InputError
from model.files import read_json, write_whole
from model.imports import uncollected
from model.machine import TrainingMachine
from model.train_spec import TrainSpec
from tasks.engine import process
from tasks.engine.failures import describe
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

Kind = Literal["input", "retry", "stage"]
"""Of a failure: another attempt cannot help; will help; is not known to."""


def launch(n_ranks: int, spec: str) -> None:
    """Become torchrun, or the only rank. No restarts: a dead rank ends all, and the stage is tried again."""
    if n_ranks == 1:
        os.environ.update(_only_rank())
        _train(Path(spec))
        return

    run_torchrun(["--standalone"], n_ranks, spec)


def run_torchrun(rendezvous: list[str], n_ranks: int, spec: str) -> None:
    """Become the torchrun of so many ranks here.

    Args:
        rendezvous: how it finds those of other nodes.
    """
    from torch.distributed import run

    os.environ[_PARENT] = str(os.getpid())
    ranks = ["--max-restarts=0", f"--nproc-per-node={n_ranks}", "-m", "tasks.training.ranks", "rank", spec]
    run.main([*rendezvous, *ranks])


def explain_failure(error: Exception, machine: TrainingMachine, needs: str = "") -> tuple[Kind, str]:
    """Whose fault the failure of a rank is, and a sentence.

    Args:
        needs: what was foretold of its memory.

    A rank that is killed takes the others with it: they find their connections closed, which is no fault of theirs.
    """
    import torch
    import torch.distributed as dist

    sentence = f"{type(error).__name__}: {error}"
    if isinstance(error, InputError):
        return "input", str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in sentence:
        first_line = str(error).split("\n")[0][:300]
        return "input", (
            f"training does not fit into memory ({first_line}){needs}: lower machine.windows_per_micro_batch (now "
            f"{machine.windows_per_micro_batch}), or set machine.activation_checkpointing: full, or a higher "
            "machine.zero_stage on more ranks, or say in machine.memory_gigabytes what there is"
        )
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _PEER.search(sentence)):
        return "retry", f"{_LOST} ({sentence})"
    if isinstance(error, OSError):
        described = describe(error)
        return "retry" if described["retryable"] else "stage", described["error"]
    return "stage", sentence


def _needs(spec: TrainSpec) -> str:
    from tasks.training.fit import lay_out_spec

    return f"; it was estimated to need {lay_out_spec(spec, None).memory.total / 1e9:.1f} GB on each rank"


def first_error(work: Path) -> tuple[Kind, str] | None:
    """Why training failed, and on which rank: what the first that failed says; None if none came to say it.

    One that lost another rank says so, and speaks only if nobody has another reason; then the rank that ended without a
    word is named.
    """
    errors = {path: error for path in work.glob(ERRORS) if (error := read_json(path))}
    if not errors:
        return None
    path, (_, kind, sentence) = min(errors.items(), key=lambda item: (item[1][1] == "retry", item[1]))
    presence = presences(work)
    failed = {int(path.stem.removeprefix("error-")) for path in errors}
    silent = sorted(presence.keys() - failed)
    if kind == "retry" and silent and sentence.startswith(_LOST):
        sentence = f"{where(silent[0], presence)} ended without a word; {sentence}"
    elif len(presence) > 1:
        sentence = f"{where(int(path.stem.removeprefix('error-')), presence)}: {sentence}"
    return kind, sentence


def presences(work: Path) -> dict[int, dict[str, Any]]:
    """What each rank does, and where, as far as ranks said."""
    told = {path: read_json(path) for path in work.glob(PRESENCE)}
    return {int(path.stem.removeprefix("rank-")): seen for path, seen in told.items() if seen}


def where(rank: int, presence: dict[int, dict[str, Any]]) -> str:
    """A rank with its host and its phase, for a person."""
    seen = presence.get(rank)
    return f"rank {rank} on {seen['host']} ({seen['phase']})" if seen else f"rank {rank}"


def _only_rank() -> dict[str, str]:
    """What torchrun would say to rank 0 of 1."""
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(process.free_port()),
    }


def rank(spec_path: Path) -> None:
    """Train as the rank that the environment names; rank 0 writes progress and result, a failing rank its error."""
    process.die_with_parent(int(os.environ.pop(_PARENT)))
    _train(spec_path)


def _train(spec_path: Path) -> None:
    spec = TrainSpec.model_validate_json(spec_path.read_bytes())
    if spec.machine.device == "cpu" and not spec.is_compiled:
        # DeepSpeed would compile an optimizer that is not used, and take a second for it.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    with uncollected():
        from model import train as training

    own_rank = os.environ["RANK"]

    def enter(phase: str) -> None:
        told = {"host": socket.gethostname(), "phase": phase, "since_ns": time.time_ns()}
        write_whole(spec.work / PRESENCE.replace("*", own_rank), json.dumps(told))

    def fail(kind: Kind, sentence: str) -> None:
        path = spec.work / ERRORS.replace("*", own_rank)
        write_whole(path, json.dumps((time.time_ns(), kind, sentence)))

    try:
        enter("load")
        metrics = training.train(
            spec, lambda *state: write_whole(spec.work / PROGRESS, json.dumps(state)), enter
        )
    except training.Stopped as stopped:
        fail("retry", str(stopped))
        raise SystemExit(1) from None
    except Exception as error:
        fail(*explain_failure(error, spec.machine, _needs(spec)))
        raise
    if own_rank == "0":
        write_whole(spec.work / RESULT, json.dumps(metrics))


def train_here(spec: TrainSpec, on_step: Callable[..., None] = progress) -> dict[str, Any]:
    """Train in this process as rank 0 of 1, without torchrun: for a debugger, and to try how fast it is.

    Raises:
        KeyboardInterrupt: if it was asked to stop; a checkpoint was written first.
    """
    from model import train as training

    before = dict(os.environ)
    os.environ.update(_only_rank(), DS_ACCELERATOR=spec.machine.device)
    try:
        return training.train(spec, on_step)
    except training.Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from None
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


if __name__ == "__main__":
    process.adopt()
    match sys.argv[1]:
        case "launch":
            launch(int(sys.argv[2]), sys.argv[3])
        case "torchrun":
            run_torchrun(sys.argv[4:], int(sys.argv[2]), sys.argv[3])
        case "node":
            from tasks.training.team import run_node

            process.exit_on_sigterm()
            sys.exit(run_node(Path(sys.argv[2]), int(sys.argv[3])))
        case _:
            rank(Path(sys.argv[2]))
