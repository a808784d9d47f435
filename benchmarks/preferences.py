"""What packing the sides of preferences saves, beside padding all of a forward pass to its longest.

    python -m benchmarks.preferences [--pairs 64]

Made-up pairs whose lengths vary as those of talk do (log-normal, a median prompt of 74 tokens and a median answer of 37), on a
model of 6 layers of 256 with a context of 512; both ways in one process, in turns, three times each.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.batches import padded
from model.config import ModelConfig
from model.loss import log_probabilities
from model.objectives.masked_documents import Document
from model.objectives.preferences import PreferenceObjective, PreferencePairs
from model.transformer import Transformer

CONTEXT, VOCABULARY, PAIRS_AT_ONCE, BETA = 512, 2_048, 8, 0.1


def made_up_pairs(n_pairs: int) -> list[Document]:
    """Chosen and rejected side of each pair: a prompt that both have, and an answer."""
    generator = np.random.default_rng(0)
    documents = []
    for _ in range(n_pairs):
        prompt = int(np.clip(generator.lognormal(4.3, 0.7), 20, CONTEXT - 16))
        for _ in ("chosen", "rejected"):
            n_tokens = int(np.clip(prompt + generator.lognormal(3.6, 0.8), prompt + 5, CONTEXT))
            ids = generator.integers(1, VOCABULARY, n_tokens + 1).astype(np.uint16)
            documents.append(Document(ids, (np.arange(n_tokens + 1) >= prompt).astype(np.uint8)))
    return documents


def packed_step(model: Transformer, pairs: PreferencePairs, indices: range) -> tuple[int, Tensor]:
    """Places that are computed, and the loss, as training takes it."""
    rows = {name: torch.from_numpy(values) for name, values in pairs.rows(indices).items()}
    return rows["tokens"].numel(), PreferenceObjective(beta=BETA, reference=Path("none")).loss(model, rows)


def padded_step(model: Transformer, pairs: PreferencePairs, indices: range) -> tuple[int, Tensor]:
    """The same with each side in a window of its own, as long as the longest in multiples of 64."""
    documents = [pairs.documents[2 * index + side] for index in indices for side in (0, 1)]
    length = -(-max(map(len, documents)) // 64) * 64
    windows = [padded(document.inputs, document.targets, length) for document in documents]
    tokens, targets = (torch.from_numpy(np.stack(part)) for part in zip(*windows, strict=True))
    chosen, rejected = log_probabilities(model, tokens, targets).view(-1, 2).unbind(1)
    return tokens.numel(), -F.logsigmoid(BETA * (chosen - rejected)).sum()


def main() -> None:
    """Print places and processor seconds of both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=64, help="how many pairs, 8 in a forward pass")
    n_pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    model = Transformer(ModelConfig(n_layers=6, d_model=256, n_heads=4, context_length=CONTEXT), VOCABULARY)
    model.initialize(0)
    documents = made_up_pairs(n_pairs)
    pairs = PreferencePairs(documents, np.zeros(len(documents), np.float32), CONTEXT)
    ways: dict[str, Callable[[Transformer, PreferencePairs, range], tuple[int, Tensor]]]
    ways = {"packed": packed_step, "padded": padded_step}
    places, seconds = dict.fromkeys(ways, 0), {name: [] for name in ways}
    for _ in range(3):
        for name, step in ways.items():
            started, places[name] = time.process_time(), 0
            for first in range(0, n_pairs, PAIRS_AT_ONCE):
                count, loss = step(model, pairs, range(first, min(n_pairs, first + PAIRS_AT_ONCE)))
                loss.backward()
                model.zero_grad()
                places[name] += count
            seconds[name].append(time.process_time() - started)
    print(f"tokens of {n_pairs} pairs: {sum(map(len, documents)):,}")
    for name in ways:
        print(f"{name}: {places[name]:,} places, {median(seconds[name]):.1f} processor seconds")
    print(f"packed takes {median(seconds['packed']) / median(seconds['padded']):.2f} of padded")


if __name__ == "__main__":
    main()
