"""ingest: a snapshot of the raw text, as shards of documents."""

from pathlib import Path

from tasks.engine.stage import Metrics, stage
from tasks.text.document_shards import write_documents
from tasks.text.records import from_mapping
from tasks.text.sources import IngestConfig, fingerprint_sources


@stage(
    libraries=("pyarrow", "datasets", "huggingface_hub", "resiliparse"),
    retries=2,
    role="read",
    fingerprint=fingerprint_sources,
)
def ingest(config: IngestConfig, out: Path) -> Metrics:
    """Write shards/NNNNN/documents.parquet and digests.parquet in the order of source, path and row, and errors.jsonl.

    Raises:
        InputError: if nothing can be read, or more than `max_error_rate` cannot.
    """
    return write_documents(config, out, from_mapping)
