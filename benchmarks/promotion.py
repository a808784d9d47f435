"""How often a retraining refuses an equal model, and promotes a better one: python benchmarks/promotion.py.

Simulated answers and held-out documents; prints a table in Markdown. Beside the rule of `compare_models` stands the one
that gives each benchmark a veto by its own 95% interval.
"""

import argparse
from typing import Any

import numpy as np

from tasks.evaluation.compare_models import compare_held_out, verdict
from tasks.evaluation.intervals import compare_items


def answers(rng: np.random.Generator, n_items: int, gain: float) -> tuple[dict[int, float], dict[int, float]]:
    """Right and wrong of champion and challenger, who differ in a fifth of the items."""
    champion = rng.random(n_items) < 0.5
    challenger = np.where(rng.random(n_items) < 0.2, rng.random(n_items) < 0.5 + gain / 0.2, champion)
    return dict(enumerate(champion.astype(float))), dict(enumerate(challenger.astype(float)))


def held_out(rng: np.random.Generator, n_documents: int, gain: float) -> Any:
    """Nats of champion and challenger, and bytes, of documents of 2,000 bytes: (documents, 3)."""
    of_document = rng.normal(1.5, 0.3, n_documents)
    of_models = rng.normal(0, 0.02, (n_documents, 2)) - np.array([0, gain])
    return np.hstack(
        [(of_document[:, None] + of_models) * 2000 * np.log(2), np.full((n_documents, 1), 2000.0)]
    )


def main() -> None:
    """Simulate, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=200, help="simulated retrainings of each kind")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    print(
        "| benchmarks | gain on benchmarks | gain in bits per byte | promoted | with a veto of each |\n|---|---|---|---|---|"
    )
    for n_tasks in (3, 10, 67):
        for gain, bits in ((0.0, 0.02), (0.0, 0.0), (0.02, 0.02), (-0.03, 0.02)):
            promoted = with_veto = 0
            for _ in range(given.pairs):
                text = compare_held_out(held_out(rng, 40, bits), held_out(rng, 40, bits))
                scores = {str(i): compare_items(*answers(rng, 200, gain)) for i in range(n_tasks)}
                promoted += verdict(text, scores, 0.002)[0]
                vetoed = any(score["interval"][1] < 0 for score in scores.values())
                with_veto += text["interval"][1] < -0.002 and not vetoed
            shares = f"{promoted / given.pairs:.0%} | {with_veto / given.pairs:.0%}"
            print(f"| {n_tasks} | {gain:+.2f} | {bits:+.3f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
