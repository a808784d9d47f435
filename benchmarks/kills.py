"""Kills of any process of one run that trains, at random: whether it ends with the same bits, and how long training stood still.

python -m benchmarks.kills [--kills 20] [--ranks 2] [--zero-stage 2] [--size 3M] [--steps 300] [--seed 0]

The demo's text, and a model of that size. Each kill (SIGKILL) hits the command, its Prefect server, the process of the stage, torchrun
or one of its ranks, at a random moment after a step was done. A command that has ended is given again. Then the same run undisturbed,
whose training must have come to the same bytes.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from model.train_spec import METRICS

RECIPE = Path(__file__).parents[1] / "deployments" / "recipes" / "demo.yaml"
TOKENS_PER_BATCH = 512
KINDS = {
    "flows.serving.server": "Prefect server",
    "tasks.engine.child": "stage",
    "tasks.engine.ranks\0launch": "torchrun",
    "tasks.engine.ranks\0rank": "rank",
}


def command(options: argparse.Namespace, store: Path) -> list[str]:
    """The run, into a store."""
    fields = {
        "model": {"size": options.size, "context_length": 256},
        "train_model.tokens": options.steps * TOKENS_PER_BATCH,
        "train_model.tokens_per_batch": TOKENS_PER_BATCH,
        "train_model.dtype": "float32",
        "evaluate_model.tasks": [],
        "machine.device": "cpu",
        "machine.ranks": options.ranks,
        "machine.zero_stage": options.zero_stage,
        "machine.checkpoint_every_seconds": 0.5,
    }
    assignments = [
        word for name, value in fields.items() for word in ("--set", f"{name}={json.dumps(value)}")
    ]
    program = str(Path(sys.executable).parent / "scratchlm")
    return [program, "run", str(RECIPE), *assignments, "--json", "--store", str(store)]


def kind_of(process: psutil.Process) -> str:
    """What a process of the run is."""
    words = "\0".join(process.cmdline())
    return next((kind for part, kind in KINDS.items() if part in words), "command")


def log_bytes(store: Path) -> int:
    """Of the training's log: it is longer after each step, and cut off where another attempt goes on."""
    sizes = []
    for path in (store / "work").glob(f"train_model-*/{METRICS}"):
        with suppress(FileNotFoundError):  # the training has just been published
            sizes.append(path.stat().st_size)
    return sum(sizes)


class Run:
    """A run, which may be killed, and is given again."""

    def __init__(self, options: argparse.Namespace, store: Path) -> None:
        self.command, self.store, self.starts = command(options, store), store, 0
        self.hits_known = self.hits = 0
        self.output, self.log = store.with_suffix(".json"), store.with_suffix(".log")
        self.running = self._start()

    def _start(self) -> psutil.Popen:
        self.starts += 1
        with self.output.open("w") as out, self.log.open("a") as log:
            return psutil.Popen(self.command, stdout=out, stderr=log)

    def go_on(self) -> bool:
        """Give the command again if it has ended since something was killed; whether there is more to do."""
        code = self.running.poll()
        if code == 0:
            return False
        if code is not None:
            if self.hits == self.hits_known:
                raise SystemExit(f"it failed, though nothing was killed: {self.log.read_text()[-2000:]}")
            self.hits_known = self.hits
            self.running = self._start()
        return True

    def stop(self) -> None:
        """End it with all that it started."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.running.wait()

    def family(self) -> list[psutil.Process]:
        """The command and all processes below it."""
        try:
            return [self.running, *self.running.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self) -> dict[str, Any]:
        """What it came to."""
        while self.go_on():
            time.sleep(0.1)
        results: dict[str, Any] = json.loads(self.output.read_text().splitlines()[-1])
        return results


def wait_for_step(run: Run) -> bool:
    """Until another step is done; whether there was one before the run ended."""
    known = log_bytes(run.store)
    while run.go_on():
        now = log_bytes(run.store)
        if now > known:
            return True
        known = now
        time.sleep(0.02)
    return False


def kill_at_random(run: Run, n_kills: int, seed: int) -> tuple[list[float], Counter[str]]:
    """Kill so many times; returns the seconds from each kill to the next step, and what was killed."""
    generator, waits, victims = random.Random(seed), [], Counter[str]()
    while len(waits) < n_kills and wait_for_step(run):
        time.sleep(generator.uniform(0.0, 4.0))
        try:
            victim = generator.choice(run.family())
            kind = kind_of(victim)
            victim.kill()
        except (IndexError, psutil.NoSuchProcess):  # it has just ended by itself
            continue
        victims[kind] += 1
        run.hits += 1
        killed_at = time.monotonic()
        if wait_for_step(run):
            waits.append(time.monotonic() - killed_at)
    return waits, victims


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--ranks", type=int, default=2, help="of the training (default 2)")
    parser.add_argument("--zero-stage", type=int, default=2, help="of the training (default 2)")
    parser.add_argument("--size", default="3M", help="of the model (default 3M)")
    parser.add_argument("--steps", type=int, default=300, help="of the training (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the kills (default 0)")
    options = parser.parse_args()
    os.environ.pop("PREFECT_API_URL", None)
    signal.signal(signal.SIGTERM, lambda *received: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder:
        ends = []
        for name, kills in (("killed", options.kills), ("undisturbed", 0)):
            run = Run(options, Path(folder) / name)
            try:
                waits, victims = kill_at_random(run, kills, options.seed)
                ends.append(run.end())
            finally:
                run.stop()
            if len(waits) < kills:
                raise SystemExit(f"it ended after {len(waits)} of {kills} kills: take more --steps")
            if waits:
                hit = ", ".join(f"{kind} {number}" for kind, number in victims.most_common())
                print(f"{sum(victims.values())} kills ({hit}); the command was given {run.starts} times")
                print(
                    f"from a kill to the next step {median(waits):.1f} s, at most {max(waits):.1f} s",
                    flush=True,
                )
    digests = [end["artifacts"]["train_model"]["digest"] for end in ends]
    print(f"{'equal' if len(set(digests)) == 1 else 'DIFFERENT'}: {' '.join(digests)}")
    raise SystemExit(len(set(digests)) - 1)


if __name__ == "__main__":
    main()
