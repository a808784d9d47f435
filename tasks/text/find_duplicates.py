"""find_duplicates: pairs of documents that are alike, a bucket of the signatures at a time."""

import tempfile
from pathlib import Path

from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Artifact, Metrics, Piece, Pieces, map_stage
from tasks.text.signatures import AGAIN, ALIKE, NEAR, MinhashConfig


def list_buckets(config: MinhashConfig, digests: SourceDigests) -> Pieces:
    """Each bucket of hashes."""
    return Pieces([{"bucket": bucket} for bucket in range(config.buckets)], {})


@map_stage(libraries=("numpy", "scipy", "pyarrow"), pieces=list_buckets)
def find_duplicates(
    config: MinhashConfig, signatures: Artifact, copies: Artifact, piece: Piece, out: Path
) -> Metrics:
    """Write near.npy (an equal bucket) and alike.npy (enough equal hashes): pairs of documents, int64 (pairs, 2).

    Documents are numbered over all signed shards; of copies one is compared. Keys are sorted part by part on disk, and only
    those of equal keys are compared, so memory follows the duplicates, not the documents.
    """
    import numpy as np

    from tasks.text.likeness import Signatures, pairs_of_bucket

    found, again = Signatures(signatures.shards), np.load(copies.path / AGAIN, mmap_mode="r")
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        near, alike = pairs_of_bucket(config, piece.values["bucket"], found, again, Path(folder))
    np.save(out / NEAR, near)
    np.save(out / ALIKE, alike)
    return {"near": len(near), "alike": len(alike)}
