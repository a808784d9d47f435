"""Estimated beside measured peak memory of real trainings on a CPU, each in a process of its own.

python -m benchmarks.estimate [--dtype float32 bfloat16] [--optimizer muon adamw]

Five shapes, each with nothing, selectively, and fully recomputed. Estimated is what `model.budget` says, on top of what a process
holds that trains next to nothing.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from model.budget import memory
from model.config import ModelConfig
from tasks.engine.launcher import rank_environment

SHAPES = {
    "4 x 256": (ModelConfig(n_layers=4, d_model=256, n_heads=4, context_length=256), 4096, 16),
    "8 x 512": (ModelConfig(n_layers=8, d_model=512, n_heads=8, context_length=512), 8192, 8),
    "6 x 384, qk_norm": (
        ModelConfig(n_layers=6, d_model=384, n_heads=6, context_length=1024, qk_norm=True),
        16384,
        8,
    ),
    "12 x 768": (ModelConfig(n_layers=12, d_model=768, n_heads=12, context_length=512), 16384, 4),
    "4 x 512, gelu, tied": (
        ModelConfig(
            n_layers=4,
            d_model=512,
            n_heads=8,
            context_length=512,
            feed_forward="gelu",
            norm="layernorm",
            tie_embeddings=True,
        ),
        32768,
        8,
    ),
}
SMALLEST = (ModelConfig(n_layers=1, d_model=8, n_heads=1, context_length=8), 64, 1)


def measure(shape: str, mode: str, dtype: str, optimizer: str) -> float:
    """Peak memory of a process that took three steps, bytes."""
    from benchmarks.training import describe
    from tasks.engine.call import peak_memory_bytes
    from tasks.training.rank import train_here

    config, vocabulary_size, windows = SHAPES.get(shape, SMALLEST)
    with tempfile.TemporaryDirectory() as folder:
        options = {"dtype": dtype, "optimizer": optimizer, "device": "cpu", "compile": False}
        options["tokens_per_batch"] = windows * config.context_length
        spec = describe((config, vocabulary_size), Path(folder), argparse.Namespace(**options))
        steps = spec.train.model_copy(update={"tokens": 3 * spec.train.tokens_per_batch})
        machine = spec.machine.model_copy(
            update={"activation_checkpointing": mode, "checkpoint_every_seconds": 0.0}
        )
        train_here(spec.model_copy(update={"train": steps, "machine": machine}), lambda *told: None)
    return float(peak_memory_bytes())


def in_process(*arguments: str) -> float:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.estimate", "--only", *arguments]
    environment = os.environ | rank_environment("cpu")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--optimizer", nargs="+", default=["muon"])
    parser.add_argument("--only", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(*options.only)))
        return
    for dtype, optimizer in itertools.product(options.dtype, options.optimizer):
        ground = in_process("smallest", "none", dtype, optimizer)
        print(f"{dtype}, {optimizer}: next to nothing takes {ground / 2**20:.0f} MiB")
        for (shape, (config, vocabulary_size, windows)), mode in itertools.product(
            SHAPES.items(), ("none", "selective", "full")
        ):
            how: dict[str, Any] = {"dtype": dtype, "optimizer": optimizer, "recompute": mode, "ranks": 1}
            stage = 1 if dtype == "bfloat16" else 0
            own = memory(
                config,
                vocabulary_size,
                micro_batch=windows,
                window_length=config.context_length,
                zero_stage=stage,
                **how,
            )
            found = in_process(shape, mode, dtype, optimizer)
            estimated = ground + own.total
            print(
                f"{shape:>20} {mode:>9}: estimated {estimated / 2**20:6.0f}, measured {found / 2**20:6.0f} MiB, "
                f"{estimated / found - 1:+.1%}  {own}",
                flush=True,
            )


if __name__ == "__main__":
    main()
