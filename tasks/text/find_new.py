"""find_new: which documents of the selection an earlier run did not have."""

import json
from pathlib import Path

from tasks.engine.stage import Artifact, Metrics, stage
from tasks.tables import read_column, read_table
from tasks.text.documents import DOCUMENTS, TEXT_DIGESTS
from tasks.text.new_documents import NEW, text_digests_of
from tasks.text.selection import SELECTION, SIDES
from tasks.text.sorted_arrays import are_among


@stage(libraries=("numpy", "pyarrow"))
def find_new(documents: Artifact, selection: Artifact, former: Artifact, out: Path) -> Metrics:
    """Write train.json and validation.json: ids of the new documents on each side.

    Args:
        documents, selection: results of ingest and split now.
        former: result of ingest then.
    """
    import pyarrow as pa

    known = text_digests_of(former.shards)
    unknown: set[str] = set()
    for shard in documents.shards:
        digests = read_table(shard / TEXT_DIGESTS).column("digest").to_numpy()
        ids = read_table(shard / DOCUMENTS, ["id"]).column("id")
        unknown.update(ids.filter(pa.array(~are_among(digests, known))).to_pylist())
    new: dict[str, list[str]] = {side: [] for side in SIDES}
    for shard in selection.shards:
        ids, sides = read_column(shard / SELECTION, "id"), read_column(shard / SELECTION, "side")
        for identifier, side in zip(ids, sides, strict=True):
            if side in new and identifier in unknown:
                new[side].append(identifier)
    for side, identifiers in new.items():
        (out / NEW.format(side=side)).write_text(json.dumps(identifiers, indent=0))
    return {side: len(identifiers) for side, identifiers in new.items()}
