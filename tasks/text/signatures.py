"""MinHash signatures: their shape, and the names of their files."""

from typing import TYPE_CHECKING

from pydantic import Field

from model.base_config import Config
from tasks.tables import Schema

if TYPE_CHECKING:
    from datatrove.pipeline.dedup.minhash import MinhashConfig as DatatroveConfig

SIGNED = "signed.parquet"
"""Beside the signatures: what was signed, a row for each row of the documents."""

SIGNED_SCHEMA: Schema = {"id": "string", "source": "string", "digest": "uint64", "text_digest": "uint64"}


class MinhashConfig(Config):
    """Shape of the signatures.

    Two documents of Jaccard similarity s share a bucket with probability 1 - (1 - s^hashes)^buckets
    (Leskovec et al., Mining of Massive Datasets, section 3.4).
    """

    n_grams: int = Field(5, ge=1, description="Length of a shingle, in words.")
    buckets: int = Field(14, ge=1, description="Number of buckets; one equal bucket makes a pair.")
    hashes_per_bucket: int = Field(8, ge=1, description="Hashes in a bucket.")
    seed: int = Field(1, ge=0, lt=2**32, description="Seed of the hash functions.")


def datatrove_config(config: MinhashConfig) -> "DatatroveConfig":
    """The one configuration that every MinHash step of datatrove gets.

    32-bit signatures that are read as 64-bit ones find nothing, silently.
    """
    from datatrove.pipeline.dedup.minhash import MinhashConfig as DatatroveConfig
    from datatrove.utils.hashing import HashConfig

    return DatatroveConfig(
        n_grams=config.n_grams,
        num_buckets=config.buckets,
        hashes_per_bucket=config.hashes_per_bucket,
        seed=config.seed,
        hash_config=HashConfig(precision=32),
    )


def signature_file(bucket: int, position: int = 0) -> str:
    """Name of a signature file, as datatrove expects it."""
    return f"bucket_{bucket:03d}/{position:05d}.minhash.sig"
