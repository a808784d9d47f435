"""find_new: which documents of the selection an earlier run did not have."""

import json
from pathlib import Path

from model.base_config import Config
from tasks.documents.files import DOCUMENTS, SELECTION, SIDES, TEXT_DIGESTS, read_table
from tasks.stage import Artifact, Metrics, stage

NEW = "{side}.json"


class FindNewConfig(Config):
    """Nothing to choose: a document is new if its text was not there."""


def known_digests(documents: Artifact) -> set[int]:
    """Digests of the texts that a result of ingest holds."""
    return {digest for shard in documents.shards for digest in read_table(shard / TEXT_DIGESTS).column("digest").to_pylist()}


@stage(libraries=("pyarrow",))
def find_new(config: FindNewConfig, documents: Artifact, selection: Artifact, former: Artifact, out: Path) -> Metrics:
    """Write train.json and validation.json: ids of the new documents on each side.

    Args:
        documents, selection: results of ingest and split now.
        former: result of ingest then.
    """
    known = known_digests(former)
    unknown: set[str] = set()
    for shard in documents.shards:
        digests = read_table(shard / TEXT_DIGESTS).column("digest").to_pylist()
        ids = read_table(shard / DOCUMENTS, ["id"]).column("id").to_pylist()
        unknown.update(identifier for identifier, digest in zip(ids, digests, strict=True) if digest not in known)
    found: dict[str, list[str]] = {side: [] for side in SIDES}
    for shard in selection.shards:
        table = read_table(shard / SELECTION, ["id", "side"])
        for identifier, side in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if side in found and identifier in unknown:
                found[side].append(identifier)
    for side, ids in found.items():
        (out / NEW.format(side=side)).write_text(json.dumps(ids, indent=0))
    return {side: len(ids) for side, ids in found.items()}
