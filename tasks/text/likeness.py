"""Pairs of texts that are alike, by their signatures: near-duplicates, and, at a looser threshold, what stays on one side.

Near-duplicates share a bucket of hashes (Broder 1997; Leskovec et al., Mining of Massive Datasets, section 3.4). For groups,
documents that share a band of two hashes are candidates, found with probability 1 - (1 - s^2)^56 in 14 buckets of 8 at a
Jaccard similarity s: 0.9993 at s = 0.35, which is a text with every tenth word replaced. Of them those with at least a fifth
of equal hashes are alike, which misses one of a thousand at s = 0.35 and none at 0.5.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tasks.tables import count_rows, read_table
from tasks.text.equal_keys import KeyRuns, copies_of, pairs_of
from tasks.text.signatures import ROWS, SIGNATURES, SIGNED, MinhashConfig
from tasks.text.sorted_arrays import are_among

_HASHES_OF_A_BAND, _LEAST_SHARE = 2, 0.2
_HASHES_AT_ONCE = 16_000_000


def first_numbers(shards: tuple[Path, ...]) -> tuple[np.ndarray, int]:
    """Number of the first document of each signed shard, counted over all, and how many documents there are."""
    sizes = [count_rows(shard / SIGNED) for shard in shards]
    return np.cumsum([0, *sizes[:-1]]), sum(sizes)


class Signatures:
    """The signatures of many shards; only those that are asked for are read."""

    def __init__(self, shards: tuple[Path, ...]) -> None:
        self.shards = shards
        self.firsts, self.n_documents = first_numbers(shards)

    @property
    def n_hashes(self) -> int:
        """Hashes of a signature."""
        return self.of(0)[0].shape[0] if self.shards else 0

    def of(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of a shard, uint32 (hashes, signed documents), and the numbers of their documents."""
        numbers = self.firsts[shard] + np.load(self.shards[shard] / ROWS, mmap_mode="r").astype(np.int64)
        return np.load(self.shards[shard] / SIGNATURES, mmap_mode="r"), numbers

    def at(self, numbers: np.ndarray, hashes: slice) -> np.ndarray:
        """Some hashes of documents that have a signature, uint32 (documents, hashes)."""
        places = np.searchsorted(self.firsts, numbers, side="right") - 1
        found = None
        for shard in np.unique(places):
            own = np.flatnonzero(places == shard)
            signatures, there = self.of(int(shard))
            columns = signatures[hashes, np.searchsorted(there, numbers[own])].T
            found = np.empty((len(numbers), columns.shape[1]), np.uint32) if found is None else found
            found[own] = columns
        assert found is not None, "asked for none"
        return found


def _key(hashes: np.ndarray) -> np.ndarray:
    """64 bits of several hashes, uint32 (hashes, documents), of each document."""
    with np.errstate(over="ignore"):
        key = np.zeros(hashes.shape[1], np.uint64)
        for own in hashes:
            key = (key ^ own) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(32)
        return key


def _checked(signatures: Signatures, pairs: np.ndarray, hashes: slice, least_share: float) -> np.ndarray:
    """Those of the pairs of which so large a share of these hashes is equal."""
    kept = [np.empty((0, 2), np.int64)]
    n_hashes = len(range(*hashes.indices(signatures.n_hashes)))
    at_once = max(1, _HASHES_AT_ONCE // max(1, n_hashes))
    for first in range(0, len(pairs), at_once):
        some = pairs[first : first + at_once]
        left, right = (signatures.at(some[:, side], hashes) for side in (0, 1))
        kept.append(some[(left == right).mean(1) >= least_share])
    return np.concatenate(kept)


def _merged(pairs: Iterator[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty((0, 2), np.int64), *pairs]), axis=0)


def copies_among(signatures: Signatures, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Documents whose text another one has, and those of them whose signature another one has too.

    Args:
        folder: an empty folder.

    Returns:
        The first of each, by digest, and the copy, in the order of the copies: by number, int64 (copies, 2); and numbers,
        sorted: of copies that are signed by the same kind of words as one before them.
    """
    runs = KeyRuns(folder, 1, signatures.n_documents)
    for shard, first in enumerate(signatures.firsts.tolist()):
        of_shard = read_table(signatures.shards[shard] / SIGNED, ["text_digest", "digest", "is_code"])
        texts, digests, are_code = (column.to_numpy() for column in of_shard.columns)
        numbers = first + np.arange(len(of_shard), dtype=np.uint64)
        runs.add(0, texts, digests, 2 * numbers + are_code)
    copies, again = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    for twice, starts in runs.runs(0):
        numbers, are_code = twice // 2, twice % 2
        copies.append(copies_of(numbers, starts))
        is_again = np.ones(len(numbers), bool)
        is_again[np.unique(2 * starts + are_code, return_index=True)[1]] = False
        again.append(numbers[is_again])
    pairs = np.concatenate(copies)
    return pairs[np.argsort(pairs[:, 1])], np.sort(np.concatenate(again))


def pairs_of_bucket(
    config: MinhashConfig, bucket: int, signatures: Signatures, again: np.ndarray, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that share a bucket of hashes, and pairs that share a band of it and are alike; by number, int64 (pairs, 2).

    Memory follows the duplicates, not the documents.

    Args:
        again: numbers of documents, sorted, that are left out, since another one has their signature.
        folder: an empty folder.
    """
    begin, length = bucket * config.hashes_per_bucket, config.hashes_per_bucket
    bands = range(begin, begin + length - _HASHES_OF_A_BAND + 1, _HASHES_OF_A_BAND)
    kinds = [(begin, length), *((first, _HASHES_OF_A_BAND) for first in bands)]
    whole = slice(begin, begin + length)
    runs = KeyRuns(folder, len(kinds), signatures.n_documents)
    for shard, first in enumerate(signatures.firsts.tolist()):
        hashes, signed = signatures.of(shard)
        places = np.flatnonzero(~are_among(signed, again))
        hashes, signed = hashes[whole, places], signed[places]
        digests = read_table(signatures.shards[shard] / SIGNED, ["digest"]).column("digest").to_numpy()
        for kind, (start, n_hashes) in enumerate(kinds):
            own = hashes[start - begin : start - begin + n_hashes]
            runs.add(kind, _key(own), digests[signed - first], signed.astype(np.uint64))
    near = _merged(_checked(signatures, pairs_of(*run), whole, 1.0) for run in runs.runs(0))
    alike = _merged(
        _checked(signatures, pairs_of(*run), slice(None), _LEAST_SHARE)
        for kind in range(1, len(kinds))
        for run in runs.runs(kind)
    )
    return near, alike
