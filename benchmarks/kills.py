"""Kills of any process of one training, at random: whether it ends with the same bits, and how long it stood still.

python -m benchmarks.kills [--kills 20] [--ranks 2] [--zero-stage 2] [--size 3M] [--steps 150] [--seed 0]

Each kill hits torchrun or one of its ranks (SIGKILL), at a random moment of an attempt that has begun to train; the next attempt goes on
from the newest checkpoint, as the retries of the stage do. Then the same training undisturbed, whose weights must be equal to the bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.training import SHAPES, describe
from model.files import read_json, sha256_of_file
from model.train_spec import TrainSpec
from tasks.engine import process, ranks
from tasks.engine.launcher import rank_environment


def _start(spec: TrainSpec) -> subprocess.Popen[bytes]:
    for stale in (spec.work / ranks.PROGRESS, *spec.work.glob(ranks.ERRORS)):
        stale.unlink(missing_ok=True)
    job = ranks.Job(
        call="tasks.training.rank:train_as_rank", arguments=spec.model_dump(mode="json"), work=spec.work
    )
    path = spec.work / "job.json"
    path.write_text(job.model_dump_json())
    arguments = [sys.executable, "-m", ranks.__name__, "launch", str(spec.machine.ranks), str(path)]
    environment = process.child_environment(rank_environment("cpu"))
    log = (spec.work / "log").open("ab")
    return subprocess.Popen(arguments, env=environment, stdout=log, stderr=log)


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        children = Path(f"/proc/{parent}/task/{parent}/children")
        if children.exists():
            found += map(int, children.read_text().split())
    return found


def train(spec: TrainSpec, kills: int, seed: int) -> tuple[str, list[float]]:
    """Train, killed so many times; returns the digest of the weights, and after each kill the seconds until a step was done."""
    generator, waits, killed_at = random.Random(seed), [], 0.0
    spec.work.mkdir(parents=True)
    while True:
        running = _start(spec)
        while running.poll() is None and not read_json(spec.work / ranks.PROGRESS):
            time.sleep(0.02)
        if killed_at:
            waits.append(time.monotonic() - killed_at)
            killed_at = 0.0
        if len(waits) < kills:
            deadline = time.monotonic() + generator.uniform(0.0, 4.0)
            while running.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
        if len(waits) >= kills or running.poll() is not None:
            running.wait()
            if (spec.out / "model.safetensors").exists():
                return sha256_of_file(spec.out / "model.safetensors"), waits
            continue
        os.kill(generator.choice(_family(running.pid)), signal.SIGKILL)
        killed_at = time.monotonic()
        running.wait()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero-stage", type=int, default=2)
    parser.add_argument("--size", choices=SHAPES, default="3M")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    digests = []
    for kills in (options.kills, 0):
        with tempfile.TemporaryDirectory() as folder:
            how = {"dtype": "float32", "optimizer": "muon", "device": "cpu", "compile": False}
            described = argparse.Namespace(**how, tokens_per_batch=512)
            spec = describe(SHAPES[options.size], Path(folder), described)
            machine = spec.machine.model_copy(
                update={
                    "ranks": options.ranks,
                    "zero_stage": options.zero_stage,
                    "checkpoint_every_seconds": 0.5,
                }
            )
            steps = spec.train.model_copy(update={"tokens": options.steps * 512})
            spec = spec.model_copy(update={"machine": machine, "train": steps, "work": Path(folder) / "work"})
            digest, waits = train(spec, kills, options.seed)
            digests.append(digest)
            if waits:
                print(
                    f"{len(waits)} kills: from a kill to the next step {median(waits):.1f} s, at most {max(waits):.1f} s",
                    flush=True,
                )
    print(
        f"weights {'equal' if len(set(digests)) == 1 else 'DIFFERENT'}: {digests[0][:16]} {digests[1][:16]}"
    )


if __name__ == "__main__":
    main()
