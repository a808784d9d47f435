"""Looking for benchmark items in a text, by the index of their n-grams."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from tasks.ngrams import ngrams_of

_BITS = 26
"""Of each hash the bitmap knows so many: 8 MB."""


_ROWS_AT_ONCE = 1 << 18


class NGrams(NamedTuple):
    """The n-grams of one length.

    Attributes:
        hashes: sorted: uint64.
        tasks: names of all benchmarks.
        task, item: of each, which of them, and the number of the item.
        bitmap: whether a hash that begins with these bits is among them.
    """

    hashes: np.ndarray
    tasks: list[str]
    task: np.ndarray
    item: np.ndarray
    bitmap: np.ndarray


Index = dict[int, NGrams]
"""The n-grams of benchmark items, by their length in words."""


@lru_cache(maxsize=2)
def load_index(path: Path) -> Index:
    """The n-grams that `index_benchmarks` wrote: some twenty bytes for each of what may be millions, read part by part."""
    file = pq.ParquetFile(path, read_dictionary=["task"])
    n_rows = file.metadata.num_rows
    kinds = {"n": np.uint8, "hash": np.uint64, "task": np.uint16, "item": np.int32}
    columns = {name: np.empty(n_rows, kind) for name, kind in kinds.items()}
    numbers: dict[str, int] = {}
    for name, column in columns.items():
        first = 0
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[name]):
            part = batch.column(0)
            if name == "task":
                # Names of benchmarks as numbers, which differ from part to part.
                of_part = [numbers.setdefault(task, len(numbers)) for task in part.dictionary.to_pylist()]
                part = np.array(of_part, np.uint16)[part.indices.to_numpy()]
            column[first : first + batch.num_rows] = part
            first += batch.num_rows
    lengths, hashes, task, item = columns.values()
    index, tasks = {}, list(numbers)
    # Sorted by n and hash, as it was written.
    for n in np.unique(lengths).tolist():
        own = slice(*np.searchsorted(lengths, np.array([n, n + 1], np.uint8)).tolist())
        index[n] = NGrams(hashes[own], tasks, task[own], item[own], bitmap_of(hashes[own]))
    return index


def _bit(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Byte of the bitmap, and the bit in it, of each hash."""
    first = hashes >> np.uint64(64 - _BITS)
    return first >> np.uint64(3), np.left_shift(1, first & np.uint64(7), dtype=np.uint8, casting="unsafe")


def bitmap_of(hashes: np.ndarray) -> np.ndarray:
    """Which beginnings of a hash occur among the hashes, a bit each."""
    bitmap = np.zeros(1 << (_BITS - 3), np.uint8)
    for start in range(0, len(hashes), _ROWS_AT_ONCE):
        np.bitwise_or.at(bitmap, *_bit(hashes[start : start + _ROWS_AT_ONCE]))
    return bitmap


def _places(hashes: np.ndarray, ngrams: NGrams) -> np.ndarray:
    """Where those hashes stand that are among the n-grams. Nearly none is, and one look at the bitmap tells so."""
    at, bits = _bit(hashes)
    maybe = np.flatnonzero(ngrams.bitmap[at] & bits)
    at = np.searchsorted(ngrams.hashes, hashes[maybe])
    at = np.minimum(at, len(ngrams.hashes) - 1)
    return maybe[ngrams.hashes[at] == hashes[maybe]]


def matches_of_each(words: np.ndarray, offsets: np.ndarray, index: Index) -> list[dict[tuple[str, int], int]]:
    """For each of several texts the number of distinct n-grams of each (task, item) that it contains.

    Args:
        words, offsets: as `hash_words` yields them.
    """
    counts: list[dict[tuple[str, int], int]] = [{} for _ in range(len(offsets) - 1)]
    for n, ngrams in index.items():
        hashes, of_text = ngrams_of(words, offsets, n)
        places = _places(hashes, ngrams)
        text_of = np.searchsorted(of_text, places, side="right") - 1
        for text, value in sorted(set(zip(text_of.tolist(), hashes[places].tolist(), strict=True))):
            equal = (np.searchsorted(ngrams.hashes, np.uint64(value), side) for side in ("left", "right"))
            for i in range(*equal):
                item = (ngrams.tasks[ngrams.task[i]], int(ngrams.item[i]))
                counts[text][item] = counts[text].get(item, 0) + 1
    return counts


def matches(words: np.ndarray, index: Index) -> dict[tuple[str, int], int]:
    """Number of distinct n-grams of each (task, item) that the words of one text contain."""
    (found,) = matches_of_each(words, np.array([0, len(words)]), index)
    return found
