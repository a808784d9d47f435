"""Which of very many documents have an equal key: sorted part by part on disk, in bounded memory and few open files."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

_RECORD = np.dtype([("key", "<u8"), ("digest", "<u8"), ("number", "<u8")])
_PART_RECORDS = 4_000_000
_BUFFER_RECORDS = 4_000_000


class KeyRuns:
    """Runs of documents with equal keys, for several kinds of keys at once.

    Records of a kind are spread over parts by the highest bits of their key, so that equal ones meet in one part.

    Args:
        folder: an empty folder for the parts.
        n_documents: that will be added, at most.
    """

    def __init__(self, folder: Path, n_kinds: int, n_documents: int) -> None:
        self.folder, self.n_kinds = folder, n_kinds
        self.bits = max(0, (n_documents // _PART_RECORDS).bit_length())
        self.buffers: dict[tuple[int, int], list[np.ndarray]] = {}
        self.buffered = 0

    def add(self, kind: int, keys: np.ndarray, digests: np.ndarray, numbers: np.ndarray) -> None:
        """Take in documents by their keys of a kind; all arrays uint64.

        Args:
            digests: of the documents: order those of a run, so that it does not depend on their numbers.
        """
        records = np.empty(len(keys), _RECORD)
        records["key"], records["digest"], records["number"] = keys, digests, numbers
        parts = keys >> np.uint64(64 - self.bits) if self.bits else np.zeros(len(keys), np.uint64)
        for part in np.unique(parts).tolist():
            self.buffers.setdefault((kind, part), []).append(records[parts == part])
        self.buffered += len(keys)
        if self.buffered > _BUFFER_RECORDS:
            self._flush()

    def _flush(self) -> None:
        for (kind, part), blocks in self.buffers.items():
            with (self.folder / f"{kind:03d}-{part:05d}").open("ab") as file:
                file.write(np.concatenate(blocks).tobytes())
        self.buffers, self.buffered = {}, 0

    def runs(self, kind: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each part: numbers of the documents whose key another one has, run by run, and where the run of each begins."""
        self._flush()
        for path in sorted(self.folder.glob(f"{kind:03d}-*")):
            records = np.fromfile(path, _RECORD)
            path.unlink()
            records = _with_peers(records)
            keys, numbers = records["key"], records["number"].astype(np.int64)
            if len(keys):
                begins = np.concatenate(([True], keys[1:] != keys[:-1]))
                starts = np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))
                yield numbers, starts


def _with_peers(records: np.ndarray) -> np.ndarray:
    """The records whose key another one has, sorted by key, digest and number: few, and only they are sorted by all three."""
    keys = records["key"].copy()
    order = np.argsort(keys)
    keys = keys[order]
    same = keys[1:] == keys[:-1]
    has_peer = np.concatenate((same, [False])) | np.concatenate(([False], same))
    few = records[order[has_peer[: len(keys)]]]
    return few[np.lexsort((few["number"], few["digest"], few["key"]))]


def pairs_of(numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Pairs of documents of each run: each with the one before it, and with the first. (pairs, 2), int64."""
    later = np.flatnonzero(starts != np.arange(len(starts)))
    before = np.stack((numbers[later - 1], numbers[later]), 1)
    first = np.stack((numbers[starts[later]], numbers[later]), 1)
    return np.unique(np.concatenate((before, first)), axis=0) if len(later) else np.empty((0, 2), np.int64)


def copies_of(numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The first document of each run, and each of the others. (others, 2), int64."""
    later = np.flatnonzero(starts != np.arange(len(starts)))
    return np.stack((numbers[starts[later]], numbers[later]), 1)


def with_copies(members: np.ndarray, labels: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components to which copies were added, each to that of the document it is a copy of, which may have had none.

    Args:
        members, labels: as of `components`.
        copies: the document and the copy, int64 (copies, 2); no copy stands twice, or is among `members`.
    """
    alone = np.setdiff1d(copies[:, 0], members)
    labels = np.concatenate((labels, len(np.unique(labels)) + np.arange(len(alone), dtype=labels.dtype)))
    members = np.concatenate((members, alone))
    order = np.argsort(members)
    members, labels = members[order], labels[order]
    of_copies = labels[np.searchsorted(members, copies[:, 0])]
    members, labels = np.concatenate((members, copies[:, 1])), np.concatenate((labels, of_copies))
    order = np.argsort(members)
    return members[order], labels[order]


def components(edges: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the documents that have an edge, sorted, and the number of the component of each, counted from 0.

    Args:
        edges: in parts, int64 (pairs, 2), taken in one by one: of those before an edge for each document is left.
    """
    members, labels = np.empty(0, np.int64), np.empty(0, np.int32)
    for part in edges:
        firsts = members[np.unique(labels, return_index=True)[1]]
        members, labels = _components_of(np.concatenate((np.stack((members, firsts[labels]), 1), part)))
    return members, labels


def _components_of(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    members, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(-1, 2)
    ones = np.ones(len(places), np.int8)
    graph = coo_array((ones, (places[:, 0], places[:, 1])), shape=(len(members), len(members)))
    return members, connected_components(graph, directed=False)[1]
