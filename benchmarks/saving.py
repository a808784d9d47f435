"""What checkpoints cost a training, standing still and slower steps together: python -m benchmarks.saving [--size 30M]

The same steps with a checkpoint every few seconds and without any, in turn, each in a process of its own. Prints what one checkpoint
cost, and what share of the time that is at one a minute.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.training import SHAPES, describe
from tasks.engine.launcher import rank_environment
from tasks.training.rank import train_here

_WARM_UP = 3
"""Steps before the clock starts."""


def _train(options: argparse.Namespace) -> dict[str, float]:
    """Train once; seconds of the measured steps, and checkpoints in them."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        how = {"dtype": options.dtype, "optimizer": "muon", "device": "cpu", "compile": False}
        spec = describe(
            SHAPES[options.size],
            Path(folder),
            argparse.Namespace(**how, tokens_per_batch=options.tokens_per_batch),
        )
        machine = spec.machine.model_copy(
            update={"checkpoint_every_seconds": options.only, "keep_checkpoints": 1}
        )
        tokens = (options.steps + _WARM_UP) * options.tokens_per_batch
        work = Path(folder) / "work"
        train = spec.train.model_copy(update={"tokens": tokens})
        spec = spec.model_copy(update={"machine": machine, "train": train, "work": work})
        work.mkdir()
        at: list[float] = []
        saved: set[str] = set()

        def note(*_: object) -> None:
            at.append(time.perf_counter())
            saved.update(path.name for path in work.glob("step-*"))

        train_here(spec, note)
        return {"seconds": at[-1] - at[_WARM_UP - 1], "saves": len(saved)}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SHAPES, default="30M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two checkpoints")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is measured")
    parser.add_argument("--only", type=float, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(_train(options)))
        return
    costs = []
    for number in range(options.rounds):
        found = []
        for every in (1e9, options.every):
            arguments = [sys.executable, "-m", "benchmarks.saving", *sys.argv[1:], "--only", str(every)]
            environment = os.environ | rank_environment("cpu")
            done = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        without, having = found
        costs.append((having["seconds"] - without["seconds"]) / max(1, having["saves"]))
        print(
            f"round {number + 1}: {options.steps} steps in {without['seconds']:.1f} s, with {having['saves']} checkpoints in "
            f"{having['seconds']:.1f} s",
            flush=True,
        )
    cost = median(costs)
    print(f"one checkpoint costs {cost:.2f} s, which is {cost / 60:.2%} of the time at one a minute")


if __name__ == "__main__":
    main()
