"""Two ranks that stay: they train one spec after another, so that torch and DeepSpeed are imported once."""

import json
import os
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path

from model.train_spec import TrainSpec
from tasks.engine.process import adopt, child_environment, free_port
from tests.conftest import ROOT


class Pair:
    """Two processes as ranks 0 and 1 of one group."""

    def __init__(self) -> None:
        port = str(free_port())
        self.ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.model.pair"],
                env=child_environment(
                    {
                        "PYTHONPATH": str(ROOT),
                        "DS_ACCELERATOR": "cpu",
                        "RANK": rank,
                        "LOCAL_RANK": rank,
                        "WORLD_SIZE": "2",
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": port,
                    }
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for rank in "01"
        ]

    def train(self, spec: TrainSpec, folder: Path) -> None:
        """Train, and raise what a rank says if it fails."""
        path = folder / "spec.json"
        path.write_text(spec.model_dump_json())
        for rank in self.ranks:
            assert rank.stdin is not None
            print(path, file=rank.stdin, flush=True)
        for rank in self.ranks:
            assert rank.stdout is not None
            failure = json.loads(rank.stdout.readline())
            assert not failure, failure


@cache
def pair() -> Pair:
    """The two of this process, which end with it."""
    return Pair()


def _serve() -> None:
    import deepspeed

    from model.train import train

    # The group stays, too: DeepSpeed keeps its own of it between trainings.
    deepspeed.comm.destroy_process_group = lambda: None
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what DeepSpeed prints is no answer
    for line in sys.stdin:
        try:
            train(TrainSpec.model_validate_json(Path(line.strip()).read_bytes()), lambda *state: None)
            failure = ""
            # One of these is made for each engine, and never taken back.
            deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
        except Exception:
            failure = traceback.format_exc()
        print(json.dumps(failure), file=answers, flush=True)


if __name__ == "__main__":
    adopt()
    _serve()
