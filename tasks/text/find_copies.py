"""find_copies: documents with equal texts, before near-duplicates are looked for."""

import tempfile
from pathlib import Path

from tasks.engine.stage import Artifact, Metrics, stage
from tasks.text.signatures import AGAIN, COPIES


@stage(libraries=("numpy", "scipy", "pyarrow"))
def find_copies(signatures: Artifact, out: Path) -> Metrics:
    """Write copies.npy, pairs of documents with equal texts, and again.npy, those that need not be compared by their signature.

    Documents are numbered over all signed shards. Texts are told by their digest, sorted part by part on disk.
    """
    import numpy as np

    from tasks.text.likeness import Signatures, copies_among

    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        copies, again = copies_among(Signatures(signatures.shards), Path(folder))
    np.save(out / COPIES, copies)
    np.save(out / AGAIN, again)
    return {"copies": len(copies)}
