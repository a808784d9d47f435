"""ingest: a snapshot of the raw text, piece by piece, as shards of documents."""

from pathlib import Path

from tasks.engine.stage import Metrics, Piece, map_stage
from tasks.text.document_shards import finish_reading, write_documents
from tasks.text.pieces import list_pieces
from tasks.text.records import from_mapping
from tasks.text.sources import IngestConfig


@map_stage(
    libraries=("pyarrow", "datasets", "huggingface_hub", "resiliparse", "fsspec"),
    retries=2,
    role="read",
    pieces=list_pieces,
    whole_fields=("sources", "shard_bytes", "max_error_rate"),
    several=True,
    finish=finish_reading,
)
def ingest(config: IngestConfig, piece: Piece, out: Path) -> Metrics:
    """Write shards/NNNNN/documents.parquet and digests.parquet in the order of path and row, and errors.jsonl.

    Raises:
        StageFailed: if the piece is not what was listed any more.
    """
    return write_documents(config, [piece.values], out, from_mapping)
