"""Which texts are alike, by the signatures that near-duplicates are found with, at a looser threshold."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_HASHES_OF_A_BAND, _LEAST_SHARE = 2, 0.2


def alike(signatures: np.ndarray, hashes_per_bucket: int) -> np.ndarray:
    """Number of the group of each signature.

    Documents of Jaccard similarity s have an equal hash with probability s (Broder 1997). Those that share a band of
    two hashes are candidates, found with probability 1 - (1 - s^2)^56 in 14 buckets of 8: 0.9993 at s = 0.35, which
    is a text with every tenth word replaced. Of them those with at least a fifth of equal hashes are alike, which
    misses one of a thousand at s = 0.35 and none at 0.5; groups are what is connected by likeness.

    Args:
        signatures: (documents, hashes), uint32, in an order that does not depend on shards.
        hashes_per_bucket: of which bands are cut.
    """
    n, n_hashes = signatures.shape
    edges: list[np.ndarray] = [np.empty((0, 2), np.int64)]
    for first in range(0, n_hashes - _HASHES_OF_A_BAND + 1, _HASHES_OF_A_BAND):
        if first % hashes_per_bucket + _HASHES_OF_A_BAND > hashes_per_bucket:
            continue
        band = signatures[:, first].astype(np.uint64) << np.uint64(32) | signatures[:, first + 1]
        order = np.argsort(band, kind="stable")
        same = band[order[1:]] == band[order[:-1]]
        # Each with its neighbour, and with the first that has this band.
        starts = np.maximum.accumulate(np.where(np.concatenate(([True], ~same)), np.arange(n), 0))
        pairs = np.concatenate(
            (
                np.stack((order[:-1][same], order[1:][same]), 1),
                np.stack((order[starts[1:]][same], order[1:][same]), 1),
            )
        )
        likeness = (signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).mean(1) if len(pairs) else np.empty(0)
        edges.append(pairs[likeness >= _LEAST_SHARE])
    found = np.concatenate(edges)
    graph = coo_array((np.ones(len(found), np.int8), (found[:, 0], found[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]
