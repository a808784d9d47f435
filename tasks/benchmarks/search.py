"""Looking for benchmark items in a text, by the index of their n-grams."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tasks.ngrams import ngram_hashes
from tasks.tables import read_table


@lru_cache(maxsize=2)
def load_index(path: Path) -> dict[int, tuple[np.ndarray, list[str], np.ndarray]]:
    """For each n: sorted hashes, and the task and item of each."""
    table = read_table(path)
    lengths = table.column("n").to_numpy()
    index = {}
    for n in np.unique(lengths).tolist():
        chosen = np.flatnonzero(lengths == n)
        part = table.take(chosen)
        hashes = part.column("hash").to_numpy()
        order = np.argsort(hashes, kind="stable")
        names = part.column("task").to_pylist()
        index[n] = (hashes[order], [names[i] for i in order], part.column("item").to_numpy()[order])
    return index


def matches(words: np.ndarray, index: dict[int, Any]) -> dict[tuple[str, int], int]:
    """Number of distinct n-grams of each (task, item) that the words contain."""
    counts: dict[tuple[str, int], int] = {}
    for n, (hashes, tasks, items) in index.items():
        own = np.unique(ngram_hashes(words, n))
        first, last = np.searchsorted(hashes, own, "left"), np.searchsorted(hashes, own, "right")
        for hit in np.flatnonzero(last > first):
            for i in range(first[hit], last[hit]):
                item = (tasks[i], int(items[i]))
                counts[item] = counts.get(item, 0) + 1
    return counts
