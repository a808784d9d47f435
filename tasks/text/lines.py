"""Lines as hashes: which of them come back in document after document."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from tasks.tables import Schema

COUNTS = "lines.npy"
"""Of a shard: hash of each line that counts, sorted, and in how many documents it is: uint64 (2, lines)."""
EXAMPLES = "examples.parquet"
"""Of a shard: its commonest lines, for a person."""
EXAMPLES_SCHEMA: Schema = {"hash": "uint64", "line": "string", "documents": "uint32"}
REPEATED = "repeated.npy"
"""Of all shards: hashes of the lines that come back too often, sorted: uint64."""

_PARTS = 16


def hash_line(line: str) -> int:
    """64 bits of a line without the white space around it."""
    return xxhash.xxh3_64_intdigest(line.strip().encode("utf-8", "surrogatepass"))


def lines_of(text: str, min_characters: int) -> Iterator[str]:
    """The lines of a text that are long enough to count."""
    return (line for line in text.split("\n") if len(line.strip()) >= min_characters)


def repeated_hashes(shards: tuple[Path, ...], min_documents: int) -> np.ndarray:
    """Hashes of the lines that are in so many documents of all shards: uint64, sorted.

    A sixteenth of the hashes is in memory at a time.
    """
    found = [np.empty(0, np.uint64)]
    for part in range(_PARTS):
        parts = []
        for shard in shards:
            counts = np.load(shard / COUNTS, mmap_mode="r")
            first, last = (_place(counts[0], bound * 2**64 // _PARTS) for bound in (part, part + 1))
            parts.append(np.array(counts[:, first:last]))
        hashes, documents = np.concatenate(parts, axis=1)
        unique, of = np.unique(hashes, return_inverse=True)
        sums = np.bincount(of, weights=documents, minlength=len(unique))
        found.append(unique[sums >= min_documents])
    return np.concatenate(found)


def _place(hashes: np.ndarray, bound: int) -> int:
    """How many of the sorted hashes are below a bound."""
    return len(hashes) if bound >= 2**64 else int(np.searchsorted(hashes, np.uint64(bound)))
