"""groups.parquet: documents that are alike enough to stay on one side of the split, row by row.

Alike is looser than a near-duplicate: what is learnt from one of them tells of the other.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.tables import Schema

GROUPS = "groups.parquet"
GROUPS_SCHEMA: "Schema" = {"draw": "uint64", "held": "string"}
"""draw: decides the side of the group; held: why its side is decided already, or nothing."""

CLUSTERS = "clusters.parquet"
CLUSTERS_SCHEMA: "Schema" = {"cluster": "string", "cluster_size": "uint32"}
"""cluster: id of the document that stands for its near-duplicates, null where there are none; cluster_size: how many they are."""

LISTED = "listed"
"""A document of the group is one that the recipe itself holds out."""


def draw(seed: int, text_digest: int) -> int:
    """64 bits that decide the side of a text; of a group the smallest counts, so that new text moves none out of validation."""
    digest = hashlib.blake2b(f"{seed}\0{text_digest}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
