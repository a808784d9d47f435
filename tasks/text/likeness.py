"""Which texts are alike, by their signatures: near-duplicates, and, at a looser threshold, what has to stay on one side."""

from pathlib import Path

import numpy as np

from tasks.text.equal_keys import KeyRuns, components, pairs_of
from tasks.text.signatures import ROWS, SIGNATURES, MinhashConfig

_HASHES_OF_A_BAND, _LEAST_SHARE = 2, 0.2
_PAIRS = 100_000


class Signatures:
    """The signatures of many shards; only those that are asked for are read.

    Args:
        shards: folders that minhash wrote.
        firsts: number of the first document of each.
    """

    def __init__(self, shards: tuple[Path, ...], firsts: np.ndarray) -> None:
        self.shards, self.firsts = shards, firsts

    def of(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Signatures of a shard, and the numbers of their documents."""
        numbers = self.firsts[shard] + np.load(self.shards[shard] / ROWS).astype(np.int64)
        return np.load(self.shards[shard] / SIGNATURES, mmap_mode="r"), numbers

    def at(self, numbers: np.ndarray) -> np.ndarray:
        """The signatures of documents that have one, uint32 (documents, hashes)."""
        places = np.searchsorted(self.firsts, numbers, side="right") - 1
        order = np.argsort(places, kind="stable")
        found = None
        for shard in np.unique(places):
            own = order[places[order] == shard]
            signatures, there = self.of(int(shard))
            rows = signatures[np.searchsorted(there, numbers[own])]
            found = np.empty((len(numbers), rows.shape[1]), np.uint32) if found is None else found
            found[own] = rows
        assert found is not None, "asked for none"
        return found


def _key(hashes: np.ndarray) -> np.ndarray:
    """64 bits of several hashes of each document."""
    with np.errstate(over="ignore"):
        key = np.zeros(len(hashes), np.uint64)
        for column in range(hashes.shape[1]):
            key = (key ^ hashes[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(32)
        return key


class Likeness:
    """Finds pairs of documents with equal texts, equal buckets, and equal bands.

    Near-duplicates share a bucket of hashes (Broder 1997; Leskovec et al., section 3.4). For groups, documents that share a
    band of two hashes are candidates, found with probability 1 - (1 - s^2)^56 in 14 buckets of 8 at a Jaccard similarity s:
    0.9993 at s = 0.35, which is a text with every tenth word replaced. Of them those with at least a fifth of equal hashes
    are alike, which misses one of a thousand at s = 0.35 and none at 0.5.

    Memory follows the duplicates, not the documents.

    Args:
        folder: an empty folder.
    """

    def __init__(self, config: MinhashConfig, signatures: Signatures, n_documents: int, folder: Path) -> None:
        self.config, self.signatures = config, signatures
        per_bucket, self.n_hashes = config.hashes_per_bucket, config.buckets * config.hashes_per_bucket
        firsts = range(0, self.n_hashes - _HASHES_OF_A_BAND + 1, _HASHES_OF_A_BAND)
        bands = [
            (first, _HASHES_OF_A_BAND)
            for first in firsts
            if first % per_bucket + _HASHES_OF_A_BAND <= per_bucket
        ]
        self.buckets = [(bucket * per_bucket, per_bucket) for bucket in range(config.buckets)]
        self.columns = [*self.buckets, *bands]
        self.runs = KeyRuns(folder, len(self.columns) + 1, n_documents)

    def add(self, shard: int, first: int, digests: np.ndarray, text_digests: np.ndarray) -> None:
        """Take in the documents of a shard, by the digests of each of them and of its text."""
        numbers = first + np.arange(len(digests), dtype=np.int64)
        self.runs.add(len(self.columns), text_digests, digests, numbers.astype(np.uint64))
        signatures, signed = self.signatures.of(shard)
        for kind, (begin, length) in enumerate(self.columns):
            keys = _key(signatures[:, begin : begin + length])
            self.runs.add(kind, keys, digests[signed - first], signed.astype(np.uint64))

    def clusters(self) -> tuple[np.ndarray, np.ndarray]:
        """Documents that are equal or near-duplicates, and the cluster of each, by number; others are in none."""
        edges = [pairs_of(*run) for run in self.runs.runs(len(self.columns))]
        for kind, (begin, length) in enumerate(self.buckets):
            for run in self.runs.runs(kind):
                edges.append(self._checked(pairs_of(*run), slice(begin, begin + length), 1.0))
        return components(edges)

    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Documents that are alike another one, and the group of each, by number; groups are what is connected by likeness."""
        edges = []
        for kind in range(len(self.buckets), len(self.columns)):
            for run in self.runs.runs(kind):
                edges.append(self._checked(pairs_of(*run), slice(None), _LEAST_SHARE))
        return components(edges)

    def _checked(self, pairs: np.ndarray, columns: slice, least_share: float) -> np.ndarray:
        """Those of the pairs of which so large a share of these hashes is equal."""
        kept = [np.empty((0, 2), np.int64)]
        for first in range(0, len(pairs), _PAIRS):
            some = pairs[first : first + _PAIRS]
            left, right = self.signatures.at(some[:, 0]), self.signatures.at(some[:, 1])
            kept.append(some[(left[:, columns] == right[:, columns]).mean(1) >= least_share])
        return np.concatenate(kept)
