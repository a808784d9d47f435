"""The files of a shard of documents, and of what is decided about them.

documents.parquet: the documents. digests.parquet: a digest of the text of each. verdicts.parquet: one row for each row of a documents
file, in its order: was it kept, and if not, why. selection.parquet: the side that each
document ends on. index.parquet: n-grams of benchmark items. held_out.parquet, items.parquet
and answers.parquet: what a model makes of held-out documents, benchmark items and questions.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

DOCUMENTS = "documents.parquet"
TEXT_DIGESTS = "digests.parquet"
VERDICTS = "verdicts.parquet"
SELECTION = "selection.parquet"
INDEX = "index.parquet"
HELD_OUT = "held_out.parquet"
ITEMS = "items.parquet"
ANSWERS = "answers.parquet"
SIDES = ("train", "validation")

Schema = dict[str, str]
"""Columns in order: name -> Arrow type. Files are written with an explicit schema, never an inferred one."""

# The metadata is JSON with sorted keys: a struct would take its fields from the first document and lose later ones.
DOCUMENTS_SCHEMA: Schema = {"id": "string", "text": "large_string", "source": "string", "metadata": "string"}
TEXT_DIGESTS_SCHEMA: Schema = {"digest": "uint64"}
VERDICTS_SCHEMA: Schema = {"kept": "bool", "step": "string", "reason": "string", "detail": "string"}
SELECTION_SCHEMA: Schema = {"id": "string", "side": "string", "reason": "string"}
INDEX_SCHEMA: Schema = {"n": "uint8", "hash": "uint64", "task": "string", "item": "uint32"}


def write_table(path: Path, rows: list[dict[str, Any]], schema: Schema) -> None:
    """Write rows as one Zstandard Parquet file with exactly this schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    arrow_schema = pa.schema([pa.field(name, kind) for name, kind in schema.items()])
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema), path, compression="zstd")


def read_table(path: Path, columns: list[str] | None = None) -> "pa.Table":
    """Read a Parquet file, or some of its columns."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read(columns=columns)


def document_digest(identifier: str, text: str) -> int:
    """64 bits of BLAKE2b over id and text: decides boundaries of shards and survivors of clusters."""
    digest = hashlib.blake2b(identifier.encode(), digest_size=8)
    digest.update(b"\0" + text.encode())
    return int.from_bytes(digest.digest(), "big")


def text_digest(text: str) -> int:
    """64 bits of BLAKE2b over a text: says whether it was read before, under whatever name."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def sorted_json(metadata: dict[str, Any]) -> str:
    """`metadata` as JSON with sorted keys: equal dictionaries become equal bytes."""
    return json.dumps(metadata, sort_keys=True, ensure_ascii=False, default=str)
