"""Activation checkpointing: memory held between forward and backward pass, its peak, and the time of a step, in each mode.

python -m benchmarks.checkpointing [--layers 8] [--width 256] [--context 512] [--windows 8] [--dtype float32] [--repeat 5]

The textbook says a third more FLOPs for `full` (the forward pass once more; Chen et al. 2016, arXiv 1604.06174). Modes take turns,
so that a busy minute hits all of them; gradients are compared to the bit.
"""

import argparse
import time
from statistics import median

import torch
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker

from model.config import ModelConfig
from model.loss import summed_cross_entropy
from model.transformer import Transformer

MODES: tuple[str | int, ...] = ("none", "selective", "full", 2)


def _total(tracker: MemTracker, kind: str) -> int:
    return sum(each["Total"] for each in tracker.get_tracker_snapshot(kind).values())


def main() -> None:
    """Read the command line, and print a row for each mode."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("layers", 8), ("width", 256), ("context", 512), ("windows", 8), ("repeat", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    shape = ModelConfig(
        n_layers=options.layers,
        d_model=options.width,
        n_heads=options.width // 64,
        context_length=options.context,
    )
    model = Transformer(shape, 4096)
    model.initialize(0)
    dtype = getattr(torch, options.dtype)
    model.to(dtype).fill_tables()
    ids = torch.randint(
        4096, (options.windows, options.context + 1), generator=torch.Generator().manual_seed(0)
    )

    def step(mode: str | int) -> list[Tensor]:
        model.activation_checkpointing = mode
        model.zero_grad()
        states = model.hidden_states(ids[:, :-1])
        summed_cross_entropy(model, states.flatten(0, 1), ids[:, 1:].flatten()).backward()
        return [weight.grad for weight in model.parameters() if weight.grad is not None]

    seconds: dict[str | int, list[float]] = {mode: [] for mode in MODES}
    for _ in range(options.repeat + 1):
        for mode in MODES:
            started = time.perf_counter()
            step(mode)
            seconds[mode].append(time.perf_counter() - started)
    plain = [gradient.clone() for gradient in step("none")]
    for mode in MODES:
        equal = all(torch.equal(a, b) for a, b in zip(plain, step(mode), strict=True))
        model.zero_grad()
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            before = _total(tracker, "current")
            states = model.hidden_states(ids[:, :-1])
            held = _total(tracker, "current") - before
            summed_cross_entropy(model, states.flatten(0, 1), ids[:, 1:].flatten()).backward()
            del states
        peak = _total(tracker, "peak")
        ratio = median(a / b for a, b in zip(seconds[mode][1:], seconds["none"][1:], strict=True))
        print(
            f"{mode!s:>9}: held {held / 2**20:6.0f} MiB, peak {peak / 2**20:6.0f} MiB, {1000 * median(seconds[mode][1:]):7.1f} ms, "
            f"{ratio - 1:+.0%} time; gradients {'equal' if equal else 'DIFFERENT'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
