"""documents.parquet: the documents of a shard. digests.parquet: a digest of the text of each."""

import hashlib

from tasks.tables import Schema

DOCUMENTS = "documents.parquet"
TEXT_DIGESTS = "digests.parquet"

# The metadata is JSON with sorted keys: a struct would take its fields from the first document and lose later ones.
DOCUMENTS_SCHEMA: Schema = {
    "id": "string",
    "text": "large_string",
    "source": "string",
    "own_id": "string",
    "profile": "string",
    "metadata": "string",
}
TEXT_DIGESTS_SCHEMA: Schema = {"digest": "uint64"}


def document_digest(identifier: str, text: str) -> int:
    """64 bits of BLAKE2b over id and text: decides boundaries of shards and survivors of clusters."""
    digest = hashlib.blake2b(identifier.encode(), digest_size=8)
    digest.update(b"\0" + text.encode())
    return int.from_bytes(digest.digest(), "big")


def text_digest(text: str) -> int:
    """64 bits of BLAKE2b over a text: says whether it was read before, under whatever name."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
