"""How large a model for how much text and time: held-out bits per byte of shapes and numbers of epochs.

    python benchmarks/size.py [--megabytes 1 10] [--epochs 4 8] [--only LAYERSxWIDTH ...]

Each row is one training on the first megabytes of the demo text, with a schedule of its own that ends with it; what
comes after is held out. Seconds are of the training alone, measurements on the way included.
"""

import argparse
import time

from little_text import run, tokens_of

from model.config import ModelConfig

SHAPES = {"2x64": (2, 64, 2), "2x128": (2, 128, 2), "4x192": (4, 192, 4), "4x256": (4, 256, 4)}


def main() -> None:
    """Train every shape for every number of epochs, and print a row for each."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--megabytes", type=float, nargs="*", default=[1.0, 10.0])
    options.add_argument("--epochs", type=float, nargs="*", default=[4.0, 8.0])
    options.add_argument("--only", nargs="*", default=SHAPES, choices=SHAPES)
    given = options.parse_args()
    print(
        "| MB of text | layers x width | epochs | tokens | bits per byte | seconds |\n|---|---|---|---|---|---|"
    )
    for megabytes in given.megabytes:
        train_ids, held_out, n_bytes = tokens_of(megabytes)
        for name in given.only:
            layers, width, heads = SHAPES[name]
            shape = ModelConfig(
                n_layers=layers, d_model=width, n_heads=heads, context_length=128, qk_norm=True
            )
            for epochs in given.epochs:
                started = time.monotonic()
                best = min(run("windows", 0, train_ids, held_out, n_bytes, epochs, shape))
                tokens = int(epochs * len(train_ids))
                seconds = time.monotonic() - started
                print(
                    f"| {megabytes:g} | {name} | {epochs:g} | {tokens:,} | {best:.4f} | {seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
