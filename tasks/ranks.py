"""The processes of training: torchrun, and one rank of it.

python -m tasks.ranks launch N SPEC     torchrun with N ranks, bound to its parent
python -m tasks.ranks rank SPEC         one rank

Each is bound to its parent before it imports torch, which takes seconds in which a parent may be killed.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import process
from tasks.errors import InputError, StageFailed

if TYPE_CHECKING:
    from model.train import TrainSpec

RESULT, ERROR, PROGRESS = "result.json", "error.json", "progress.json"
_PARENT = "SCRATCHLM_LAUNCHER"


def read(path: Path) -> Any:
    """What a rank wrote to a file of JSON, or None."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _write(path: Path, value: Any) -> None:
    building = path.with_suffix(f".{os.getpid()}")
    building.write_text(json.dumps(value))
    os.replace(building, path)


def launch(n_ranks: int, spec: str) -> None:
    """Become torchrun. No restarts: a dead rank ends all, and the stage is tried again from its checkpoint."""
    from torch.distributed import run

    os.environ[_PARENT] = str(os.getpid())
    run.main(["--standalone", "--max-restarts=0", f"--nproc-per-node={n_ranks}", "-m", "tasks.ranks", "rank", spec])


def rank(spec_path: Path) -> None:
    """Train as the rank that the environment names; rank 0 writes progress and result, a failing rank its error."""
    process.die_with_parent(int(os.environ.pop(_PARENT)))
    from model import train as training
    from model.checkpoint import ResumeError

    spec = training.TrainSpec.model_validate_json(spec_path.read_bytes())
    try:
        metrics = training.train(spec, lambda *state: _write(spec.work / PROGRESS, state))
    except training.Stopped as stopped:
        _write(spec.work / ERROR, ("retry", str(stopped)))
        raise SystemExit(1) from None
    except (training.Diverged, ResumeError) as error:
        _write(spec.work / ERROR, ("input", str(error)))
        raise
    except Exception as error:
        _write(spec.work / ERROR, ("stage", f"{type(error).__name__}: {error}"))
        raise
    if os.environ["RANK"] == "0":
        _write(spec.work / RESULT, metrics)


def train_here(spec: "TrainSpec") -> dict[str, Any]:
    """Train in this process as rank 0 of 1, without torchrun: for a debugger."""
    import socket

    from model import train as training
    from model.checkpoint import ResumeError
    from model.tokens import TokensError
    from tasks.progress import progress

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    before = dict(os.environ)
    os.environ.update(single, DS_ACCELERATOR=spec.machine.device)
    alone = spec.model_copy(update={"machine": spec.machine.model_copy(update={"ranks": 1})})
    try:
        return training.train(alone, progress)
    except training.Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from None
    except (training.Diverged, ResumeError) as error:
        raise InputError(str(error)) from error
    except TokensError as error:
        raise StageFailed(str(error)) from error
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


if __name__ == "__main__":
    process.adopt()
    if sys.argv[1] == "launch":
        launch(int(sys.argv[2]), sys.argv[3])
    else:
        rank(Path(sys.argv[2]))
