"""find_new: which documents of the selection an earlier run did not have."""

import json
from pathlib import Path

from tasks.engine.stage import Artifact, Metrics, stage
from tasks.tables import read_column
from tasks.text.documents import DOCUMENTS, TEXT_DIGESTS, text_digests_of
from tasks.text.new_documents import NEW
from tasks.text.selection import SELECTION, SIDES


@stage(libraries=("pyarrow",))
def find_new(documents: Artifact, selection: Artifact, former: Artifact, out: Path) -> Metrics:
    """Write train.json and validation.json: ids of the new documents on each side.

    Args:
        documents, selection: results of ingest and split now.
        former: result of ingest then.
    """
    known = text_digests_of(former.shards)
    unknown: set[str] = set()
    for shard in documents.shards:
        digests, ids = read_column(shard / TEXT_DIGESTS, "digest"), read_column(shard / DOCUMENTS, "id")
        unknown.update(
            identifier for identifier, digest in zip(ids, digests, strict=True) if digest not in known
        )
    new: dict[str, list[str]] = {side: [] for side in SIDES}
    for shard in selection.shards:
        ids, sides = read_column(shard / SELECTION, "id"), read_column(shard / SELECTION, "side")
        for identifier, side in zip(ids, sides, strict=True):
            if side in new and identifier in unknown:
                new[side].append(identifier)
    for side, identifiers in new.items():
        (out / NEW.format(side=side)).write_text(json.dumps(identifiers, indent=0))
    return {side: len(identifiers) for side, identifiers in new.items()}
