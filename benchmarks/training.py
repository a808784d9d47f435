"""What the trainer costs over a bare loop: the same batches through three loops, and by one formula what each makes of the hardware.

python -m benchmarks.training [--sizes 3M 30M] [--rounds 3] [--seconds 20] [--dtype float32] [--optimizer muon]

bare      our model, the loss of all logits at once, our optimizer; nothing else
nanogpt   a GPT-2 of the same depth and width as nanoGPT builds it (github.com/karpathy/nanoGPT): learnt positions,
          LayerNorm with biases, GELU, a tied head, AdamW
scratchlm the trainer as `scratchlm run` starts it: shards, DeepSpeed, metrics, checkpoints

Each runs in a process of its own, in turn, round after round, so that a busy minute hits all of them; the ratio is of the
medians of each round. Of accelerators whose bfloat16 peak is known the share of it (MFU) is told; on a CPU FLOP/s stand for it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.batches import Windows
from model.config import ModelConfig, TrainConfig, flops_per_token
from model.goodput import speed
from model.machine import TrainingMachine
from model.objectives.text import TextObjective
from model.optimizer import build_optimizer, set_rates
from model.tokens import open_tokens
from model.train_spec import TrainSpec
from model.transformer import Transformer
from tasks.engine.call import peak_memory_bytes
from tasks.engine.launcher import rank_environment
from tasks.training.probe import write_made_up_tokens
from tasks.training.rank import train_here

SHAPES = {
    "3M": (ModelConfig(n_layers=4, d_model=256, n_heads=4, context_length=256), 4096),
    "30M": (ModelConfig(n_layers=8, d_model=512, n_heads=8, context_length=512), 8192),
    "124M": (ModelConfig(n_layers=12, d_model=768, n_heads=12, context_length=1024), 50304),
    "350M": (ModelConfig(n_layers=24, d_model=1024, n_heads=16, context_length=1024), 50304),
    "1B": (ModelConfig(n_layers=16, d_model=2048, n_heads=16, context_length=2048), 50304),
}
LOOPS = ("bare", "nanogpt", "scratchlm")


class NanoBlock(nn.Module):
    """A block of GPT-2, (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        batch, length, width = x.shape
        heads = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class NanoGPT(nn.Module):
    """A GPT-2, token ids (B, T) -> logits (B, T, V)."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary_size, config.d_model)
        self.wpe = nn.Embedding(config.context_length, config.d_model)
        self.blocks = nn.ModuleList(NanoBlock(config.d_model, config.n_heads) for _ in range(config.n_layers))
        self.ln_f = nn.LayerNorm(config.d_model)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


def _bare_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    spec: TrainSpec,
    told: Callable[[], None],
    before_step: Callable[[int], Any],
) -> None:
    device = "cuda" if spec.machine.device == "cuda" else "cpu"
    model.to(device)
    dtype = torch.bfloat16 if spec.train.dtype == "bfloat16" else None
    windows = Windows([open_tokens(path).ids for path in spec.train_shards], spec.model.context_length)
    rows, accumulation = spec.micro_batch
    for step in range(spec.train.n_steps):
        before_step(step)
        ids = torch.from_numpy(windows.batch(step, spec.rows_per_batch, 0, 0, spec.rows_per_batch)).to(device)
        for micro in ids.split(rows):
            with torch.autocast(device, dtype, enabled=dtype is not None):
                logits = model(micro[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1).float(), micro[:, 1:].flatten())
            (loss / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        told()


class _Enough(Exception):
    """Enough seconds were measured."""


def measure(loop: str, spec: TrainSpec, seconds: float) -> dict[str, float]:
    """Median seconds of a step of one loop, after its first two, and the peak memory of this process in bytes."""
    ends: list[float] = []

    def told(*_: Any) -> None:
        ends.append(time.perf_counter())
        if len(ends) > 5 and ends[-1] - ends[1] > seconds:
            raise _Enough

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    try:
        if loop == "scratchlm":
            train_here(spec, told)
        elif loop == "bare":
            model = Transformer(spec.model, spec.vocabulary_size)
            model.initialize(0)
            optimizer = build_optimizer(spec.train, model)
            _bare_loop(model, optimizer, spec, told, lambda step: set_rates(spec.train, optimizer, step))
        else:
            gpt = NanoGPT(spec.model, spec.vocabulary_size)
            adamw = torch.optim.AdamW(gpt.parameters(), 6e-4, betas=(0.9, 0.95), fused=True)
            _bare_loop(gpt, adamw, spec, told, lambda step: None)
    except _Enough:
        pass
    return {"seconds": median(np.diff(ends[1:]).tolist()), "bytes": float(peak_memory_bytes())}


def describe(size: tuple[ModelConfig, int], folder: Path, options: argparse.Namespace) -> TrainSpec:
    """The training that all loops do.

    Args:
        size: shape and vocabulary size.
    """
    shape, vocabulary_size = size
    train = TrainConfig(
        tokens=100_000 * options.tokens_per_batch,
        tokens_per_batch=options.tokens_per_batch,
        evaluations=0,
        dtype=options.dtype,
        optimizer=options.optimizer,
    )
    spec = TrainSpec(
        model=shape,
        train=train,
        machine=TrainingMachine(device=options.device, ranks=1, compile=options.compile),
        objective=TextObjective(),
        train_shards=[folder / "train.arrow"],
        validation_shards=[],
        token_bytes=folder / "token_bytes.json",
        tokenizer_sha256="",
        vocabulary_size=vocabulary_size,
        work=folder,
        out=folder / "out",
    )
    write_made_up_tokens(folder, vocabulary_size, 20 * train.tokens_per_batch + 1)
    return spec


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def compare(options: argparse.Namespace) -> None:
    """Run the loops in turn, and print what came of it."""
    for size in options.sizes:
        shape, vocabulary_size = SHAPES[size]
        found: dict[str, list[dict[str, float]]] = {loop: [] for loop in options.loops}
        for _ in range(options.rounds):
            for loop in options.loops:
                arguments = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--only", loop, size]
                environment = os.environ | rank_environment(options.device)
                done = subprocess.run(
                    arguments, env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                found[loop].append(json.loads(done.stdout.splitlines()[-1]))
        for loop, rounds in found.items():
            seconds = median(each["seconds"] for each in rounds)
            ratios = [
                each["seconds"] / bare["seconds"]
                for each, bare in zip(rounds, found.get("bare", rounds), strict=True)
            ]
            config = (
                shape.model_copy(update={"feed_forward": "gelu", "tie_embeddings": True})
                if loop == "nanogpt"
                else shape
            )
            flops = flops_per_token(config, vocabulary_size)
            made = speed(options.tokens_per_batch, seconds, flops, _device_name(options.device), ranks=1)
            share = f", {made['mfu']:.1%} of the peak" if "mfu" in made else ""
            print(
                f"{size:>5} {loop:>9}: {1000 * seconds:8.1f} ms a step, {made['tokens_per_second']:9,.0f} tokens/s, "
                f"{made['flops_per_second'] / 1e9:8,.1f} GFLOP/s{share}, "
                f"{max(each['bytes'] for each in rounds) / 2**20:6,.0f} MiB, beside bare "
                f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                flush=True,
            )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["3M", "30M"])
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of each loop in a round")
    parser.add_argument("--tokens-per-batch", type=int, default=4096)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.only:
        compare(options)
        return
    loop, size = options.only
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(loop, describe(SHAPES[size], Path(folder), options), options.seconds)))


if __name__ == "__main__":
    main()
