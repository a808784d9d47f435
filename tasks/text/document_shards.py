"""Documents as shards: what every stage that reads from outside writes."""

from pathlib import Path
from typing import Any

from model.errors import InputError
from tasks.engine.stage import Metrics
from tasks.tables import sorted_json, write_table
from tasks.text.documents import (
    DOCUMENTS,
    DOCUMENTS_SCHEMA,
    TEXT_DIGESTS,
    TEXT_DIGESTS_SCHEMA,
    document_digest,
    text_digest,
)
from tasks.text.readers import Convert, Record, read_sources
from tasks.text.sources import IngestConfig

ERRORS = "errors.jsonl"
"""What could not be read, a line each: source, where, error."""


class _ShardWriter:
    """Cuts the stream of documents into shards where the documents themselves say so.

    A shard may end after a document whose digest is below a bound that grows with the
    document, once it has a quarter of the typical size; so boundaries do not depend on
    what lies far away, and an added file changes the shards next to it only.
    """

    def __init__(self, out: Path, shard_bytes: int) -> None:
        self.out, self.shard_bytes = out, shard_bytes
        self.rows: list[dict[str, Any]] = []
        self.size, self.n_shards = 0, 0

    def add(self, row: dict[str, Any]) -> None:
        size = len(row["text"].encode())
        if self.rows and self.size + size > 3 * self.shard_bytes:
            self.flush()
        self.rows.append(row)
        self.size += size
        may_end = document_digest(row["id"], row["text"]) * self.shard_bytes < (size << 64) * 4 // 3
        if may_end and self.size >= self.shard_bytes // 4:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            folder = self.out / "shards" / f"{self.n_shards:05d}"
            write_table(folder / DOCUMENTS, self.rows, DOCUMENTS_SCHEMA)
            digests = [{"digest": text_digest(row["text"])} for row in self.rows]
            write_table(folder / TEXT_DIGESTS, digests, TEXT_DIGESTS_SCHEMA)
            self.n_shards += 1
            self.rows, self.size = [], 0


def _error_of(record: Record) -> str | None:
    if record.error is None and not (record.text or "").strip():
        return "no text"
    return record.error


def write_documents(config: IngestConfig, out: Path, convert: Convert) -> Metrics:
    """Write shards/NNNNN/documents.parquet and digests.parquet in the order of source, path and row, and errors.jsonl.

    Args:
        convert: makes a document of a row.

    Raises:
        InputError: if nothing can be read, or more than `max_error_rate` cannot.
    """
    writer = _ShardWriter(out, config.shard_bytes)
    seen: set[int] = set()
    by_source: dict[str, dict[str, int]] = {}
    errors: list[dict[str, Any]] = []
    for source, record in read_sources(config, convert):
        counts = by_source.setdefault(
            source.name, {"documents": 0, "bytes": 0, "errors": 0, "repeated_ids": 0}
        )
        where = record.where if record.row is None else f"{record.where}:{record.row}"
        error = _error_of(record)
        if error is not None:
            counts["errors"] += 1
            errors.append({"source": source.name, "where": where, "error": error})
            continue
        assert record.text is not None
        identifier = f"{source.name}/{record.identifier if record.identifier is not None else where}"
        if document_digest(identifier, "") in seen:
            # Two rows with the same id are two documents: the place tells them apart.
            counts["repeated_ids"] += 1
            identifier = f"{identifier}@{where}"
        seen.add(document_digest(identifier, ""))
        counts["documents"] += 1
        counts["bytes"] += len(record.text.encode())
        metadata = sorted_json(record.metadata or {})
        writer.add({"id": identifier, "text": record.text, "source": source.name, "metadata": metadata})
    writer.flush()
    (out / ERRORS).write_text("".join(sorted_json(error) + "\n" for error in errors))
    return {**_summary(config, by_source, errors), "shards": writer.n_shards, "sources": by_source}


def _summary(
    config: IngestConfig, by_source: dict[str, dict[str, int]], errors: list[dict[str, Any]]
) -> Metrics:
    """Documents, bytes, and errors by kind.

    Raises:
        InputError: if nothing can be read, or more than `max_error_rate` cannot.
    """
    total = sum(counts["documents"] for counts in by_source.values())
    kinds: dict[str, int] = {}
    for error in errors:
        kinds[error["error"]] = kinds.get(error["error"], 0) + 1
    if errors and (not total or len(errors) > config.max_error_rate * (total + len(errors))):
        examples = "; ".join(
            f"{count} x {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1])[:5]
        )
        raise InputError(
            f"{len(errors)} of {total + len(errors)} records cannot be used ({examples}; the first is {errors[0]['where']}): "
            f"mend the text, or raise ingest.max_error_rate (now {config.max_error_rate})"
        )
    if not total:
        raise InputError("the sources hold no document: add text to them")
    return {
        "documents": total,
        "bytes": sum(counts["bytes"] for counts in by_source.values()),
        "errors": kinds,
    }
