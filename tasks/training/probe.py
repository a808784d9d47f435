"""How fast this machine trains: a few seconds of the very training, on made-up tokens, in a process of its own.

python -m tasks.training.probe REQUEST    writes what it measured to standard output, as a line of JSON
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from model.config import TrainConfig
from model.errors import InputError
from model.machine import LEAST_STAGE, TrainingMachine, available_cores
from model.objectives.text import TextObjective
from model.train_spec import METRICS, TrainSpec
from tasks.engine import process
from tasks.engine.launcher import rank_environment
from tasks.training.fit import settled
from tasks.training.settings import TrainModelConfig

PROBE_SECONDS = 3.0
_TOKENS_PER_DOCUMENT = 1_000
"""On average, as of pages of the web."""
_TEXT = "The quick brown fox jumps over the lazy dog, and 7 others; " * 2_000


class _Enough(Exception):
    """Enough steps were measured."""


def probe_training(
    config: TrainModelConfig, vocabulary_size: int, machine: TrainingMachine
) -> dict[str, float]:
    """What a training of this shape takes here.

    Returns:
        start_seconds: until the first step; step_seconds: of one step; python_seconds: of a fixed piece of work on text,
        on one core; peak_memory_bytes: of the process that trained.

    Raises:
        InputError: if the training cannot be done here: what a rank says of it.
    """
    request = {
        "config": config.model_dump(mode="json"),
        "vocabulary_size": vocabulary_size,
        "machine": machine.model_dump(mode="json"),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(request))
        arguments = [sys.executable, "-m", __name__, str(path)]
        environment = process.child_environment(rank_environment(machine.device))
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise InputError(
            f"a training of this shape cannot be tried here: {lines[-1] if lines else 'it was killed'}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _python_seconds() -> float:
    """A fixed piece of work on text, the shortest of three times."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        words = re.findall(r"\w+", _TEXT)
        sum(len(word) for word in set(words) if word.isalpha())
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def write_made_up_tokens(folder: Path, vocabulary_size: int, n_tokens: int) -> None:
    """Write train.arrow and token_bytes.json: tokens as unlike each other as those of text, the same ones every time."""
    import numpy as np

    from model.tokens import write_tokens

    generator = np.random.default_rng(0)
    tokens = np.minimum(generator.geometric(4 / vocabulary_size, n_tokens), vocabulary_size - 1)
    # Each document begins with the end-of-text id.
    tokens[generator.random(n_tokens) < 1 / _TOKENS_PER_DOCUMENT] = 0
    header: dict[str, Any] = {"tokenizer_sha256": "", "vocabulary_size": vocabulary_size, "end_of_text_id": 0}
    write_tokens(folder / "train.arrow", [tokens], ["x"], ["x"], [n_tokens], **header)
    (folder / "token_bytes.json").write_text(json.dumps([1] * vocabulary_size))


def _as_one_of(machine: TrainingMachine) -> TrainingMachine:
    """One rank with the cores that it would have among its like, which writes no checkpoint."""
    threads = machine.threads or max(1, available_cores() // max(1, machine.ranks))
    own = {"ranks": 1, "threads": threads, "checkpoint_every_seconds": 1e9, "log_to": ()}
    if machine.ranks > 1:
        # Shares of one rank are the whole, so it is laid out anew, and keys that ask for a stage go.
        zero = machine.deepspeed.get("zero_optimization", {})
        free = {name: value for name, value in zero.items() if name != "stage" and name not in LEAST_STAGE}
        own |= {"zero_stage": "auto", "deepspeed": {**machine.deepspeed, "zero_optimization": free}}
    return TrainingMachine.model_validate({**machine.model_dump(), **own})


def _measure(request: dict[str, Any], folder: Path) -> dict[str, float]:
    """Train on made-up tokens until enough is known."""
    started = time.perf_counter()
    python_seconds = _python_seconds()
    from tasks.engine.call import peak_memory_bytes
    from tasks.training.rank import train_here

    config = TrainModelConfig.model_validate(request["config"])
    vocabulary_size = request["vocabulary_size"]
    # As few as fill two batches.
    write_made_up_tokens(folder, vocabulary_size, 2 * config.train.tokens_per_batch + 2)
    steps = {"tokens": 1_000_000 * config.train.tokens_per_batch, "evaluations": 0}
    spec = TrainSpec(
        model=config.model,
        train=TrainConfig.model_validate({**config.train.model_dump(), **steps}),
        machine=_as_one_of(TrainingMachine.model_validate(request["machine"])),
        objective=TextObjective(isolate_documents=config.train.isolate_documents),
        train_shards=[folder / "train.arrow"],
        validation_shards=[],
        token_bytes=folder / "token_bytes.json",
        tokenizer_sha256="",
        vocabulary_size=vocabulary_size,
        work=folder,
        out=folder / "out",
    )
    first: list[float] = []

    def stop_in_time(*_: Any) -> None:
        first.append(time.perf_counter())
        if len(first) > 3 and first[-1] - first[0] > PROBE_SECONDS:
            raise _Enough

    try:
        train_here(settled(spec), stop_in_time)
    except _Enough:
        pass
    seconds = [json.loads(line)["seconds"] for line in (folder / METRICS).read_text().splitlines()]
    return {
        "start_seconds": first[0] - started - seconds[0],
        "step_seconds": median(seconds[1:]),
        "python_seconds": python_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }


if __name__ == "__main__":
    process.adopt()
    # Below the folder of whoever asked, who removes it, whatever becomes of this process.
    asked = Path(sys.argv[1])
    (asked.parent / "work").mkdir()
    print(json.dumps(_measure(json.loads(asked.read_text()), asked.parent / "work")))
