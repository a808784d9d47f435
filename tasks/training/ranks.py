"""The processes of training: torchrun, and one rank of it.

python -m tasks.training.ranks launch N SPEC     torchrun with N ranks, bound to its parent
python -m tasks.training.ranks rank SPEC         one rank

Each is bound to its parent before it imports torch, which takes seconds in which a parent may be killed.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import write_whole
from model.train_spec import TrainSpec
from tasks.engine import process
from tasks.engine.progress import progress

RESULT, ERROR, PROGRESS = "result.json", "error.json", "progress.json"
_PARENT = "SCRATCHLM_LAUNCHER"


def launch(n_ranks: int, spec: str) -> None:
    """Become torchrun. No restarts: a dead rank ends all, and the stage is tried again from its checkpoint."""
    from torch.distributed import run

    os.environ[_PARENT] = str(os.getpid())
    run.main(
        [
            "--standalone",
            "--max-restarts=0",
            f"--nproc-per-node={n_ranks}",
            "-m",
            "tasks.training.ranks",
            "rank",
            spec,
        ]
    )


def rank(spec_path: Path) -> None:
    """Train as the rank that the environment names; rank 0 writes progress and result, a failing rank its error."""
    process.die_with_parent(int(os.environ.pop(_PARENT)))
    from model import train as training

    spec = TrainSpec.model_validate_json(spec_path.read_bytes())

    def fail(kind: str, sentence: str) -> None:
        write_whole(spec.work / ERROR, json.dumps((kind, sentence)))

    try:
        metrics = training.train(spec, lambda *state: write_whole(spec.work / PROGRESS, json.dumps(state)))
    except training.Stopped as stopped:
        fail("retry", str(stopped))
        raise SystemExit(1) from None
    except InputError as error:
        fail("input", str(error))
        raise
    except Exception as error:
        fail("stage", f"{type(error).__name__}: {error}")
        raise
    if os.environ["RANK"] == "0":
        write_whole(spec.work / RESULT, json.dumps(metrics))


def train_here(spec: TrainSpec) -> dict[str, Any]:
    """Train in this process as rank 0 of 1, without torchrun: for a debugger.

    Raises:
        KeyboardInterrupt: if it was asked to stop; a checkpoint was written first.
    """
    from model import train as training

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    single = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    before = dict(os.environ)
    os.environ.update(single, DS_ACCELERATOR=spec.machine.device)
    try:
        return training.train(spec, progress)
    except training.Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from None
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
