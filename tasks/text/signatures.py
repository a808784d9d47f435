"""MinHash signatures: their shape, and the names of their files."""

from pydantic import Field

from model.base_config import Config
from tasks.tables import Schema

SIGNATURES, ROWS = "signatures.npy", "rows.npy"
"""The signatures of a shard, uint32 (hashes, signed documents), and which rows of its documents they are of, in order."""
COPIES, AGAIN = "copies.npy", "again.npy"
"""Documents whose text another one has, int64 (copies, 2), the first of them and the copy; and those among them whose signature
another one has too, int64 (documents,)."""
NEAR, ALIKE = "near.npy", "alike.npy"
"""Pairs of documents that are near-duplicates, and pairs that are alike, int64 (pairs, 2)."""
SIGNED = "signed.parquet"
"""Beside the signatures: what was signed, a row for each row of the documents."""

SIGNED_SCHEMA: Schema = {
    "id": "string",
    "source": "string",
    "digest": "uint64",
    "text_digest": "uint64",
    "is_code": "bool",
}
"""is_code: whether marks of punctuation were words of its signature."""


class MinhashConfig(Config):
    """Shape of the signatures.

    Two documents of Jaccard similarity s share a bucket with probability 1 - (1 - s^hashes)^buckets
    (Leskovec et al., Mining of Massive Datasets, section 3.4).
    """

    n_grams: int = Field(5, ge=1, description="Length of a shingle, in words.")
    buckets: int = Field(14, ge=1, description="Number of buckets; one equal bucket makes a pair.")
    hashes_per_bucket: int = Field(
        8,
        ge=2,
        description="Hashes in a bucket; documents that share two are looked at for the sides of the split.",
    )
    seed: int = Field(1, ge=0, lt=2**32, description="Seed of the hash functions.")
