"""Documents as shards: what every stage that reads from outside writes."""

from collections import Counter
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
from tasks.text.readers import read_sources
from tasks.text.records import Convert, Record
from tasks.text.sources import IngestConfig, files_of, shard_bytes_of

ERRORS = "errors.jsonl"
"""What could not be read, a line each: source, where, error, the line of its file from 1 if it has lines, and the rows (null
if unknown) and bytes that are lost."""
SKIPPED = "figures/skipped.jsonl"
"""What was not read, a line each: source, where, why."""


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

    The id of a document is its source, file and row: what else there is changes none. Files that are not read are
    listed in figures/skipped.jsonl.

    Args:
        convert: makes a document of a row.

    Raises:
        InputError: if nothing can be read, or more than `max_error_rate` cannot.
    """
    writer = _ShardWriter(out, shard_bytes_of(config))
    by_source: dict[str, dict[str, int]] = {}
    errors: list[dict[str, Any]] = []
    others: list[tuple[str, str, str]] = []
    text_fields: dict[str, int] = {}
    read_bytes = 0
    for source, record in read_sources(config, convert):
        counts = by_source.setdefault(source.name, {"documents": 0, "bytes": 0, "errors": 0})
        where = record.where if record.row is None else f"{record.where}:{record.row}"
        if record.is_other:
            others.append((source.name, where, str(record.error)))
            continue
        error = _error_of(record)
        if error is not None:
            counts["errors"] += 1
            lost = {"rows": record.rows, "bytes": record.size, "line": record.line}
            errors.append({"source": source.name, "where": where, "error": error, **lost})
            continue
        assert record.text is not None
        read_bytes += record.size
        if text_digest(record.text) >= source.share * 2**64:
            counts["not taken"] = counts.get("not taken", 0) + 1
            continue
        if record.text_field:
            text_fields[record.text_field] = text_fields.get(record.text_field, 0) + 1
        counts["documents"] += 1
        counts["bytes"] += len(record.text.encode())
        row = {
            "id": f"{source.name}/{where}",
            "text": record.text,
            "source": source.name,
            "own_id": record.own_id,
            "profile": source.profile,
        }
        writer.add({**row, "metadata": sorted_json(record.metadata or {})})
    writer.flush()
    (out / ERRORS).write_text("".join(sorted_json(error) + "\n" for error in errors))
    skipped = _write_skipped(config, others, out)
    return {
        **_summary(config, by_source, errors, read_bytes, skipped, out),
        "skipped": skipped,
        "text_fields": text_fields,
        "shards": writer.n_shards,
        "sources": by_source,
    }


def _write_skipped(config: IngestConfig, others: list[tuple[str, str, str]], out: Path) -> dict[str, int]:
    """List the files that are not read, and count them by reason.

    Args:
        others: source, path and reason of those that turned out to hold no documents.
    """
    skipped = [
        (source.name, where, why)
        for source in config.sources
        if source.dataset is None
        for where, why in files_of(source).skipped
    ]
    skipped = sorted([*skipped, *others])
    lines = [sorted_json({"source": name, "where": where, "why": why}) + "\n" for name, where, why in skipped]
    (out / SKIPPED).parent.mkdir(parents=True, exist_ok=True)
    (out / SKIPPED).write_text("".join(lines))
    return dict(sorted(Counter(why for _, _, why in skipped).items()))


_MOST_PLACES = 5


def _place(error: dict[str, Any]) -> str:
    """Where an error is, as an editor counts, and what it is."""
    where = f"{error['where'].rpartition(':')[0]}, line {error['line']}" if error["line"] else error["where"]
    return f"{where}: {error['error']}"


def _summary(
    config: IngestConfig,
    by_source: dict[str, dict[str, int]],
    errors: list[dict[str, Any]],
    read_bytes: int,
    skipped: dict[str, int],
    out: Path,
) -> Metrics:
    """Documents, bytes, errors by kind, and how much is lost with them.

    Raises:
        InputError: if nothing can be read, or more than `max_error_rate` cannot.
    """
    total = sum(counts["documents"] for counts in by_source.values())
    kinds: dict[str, int] = {}
    for error in errors:
        kinds[error["error"]] = kinds.get(error["error"], 0) + 1
    lost_bytes = sum(error["bytes"] for error in errors)
    lost_rows = sum(error["rows"] or 0 for error in errors)
    share = lost_bytes / max(1, lost_bytes + read_bytes)
    if errors and (not total or share > config.max_error_rate):
        places = "".join(f"\n  {_place(error)}" for error in errors[:_MOST_PLACES])
        more = (
            f"\n  and {len(errors) - _MOST_PLACES:,} more, all of them"
            if len(errors) > _MOST_PLACES
            else "\n  all of them are"
        )
        raise InputError(
            f"{share:.1%} of the bytes cannot be used, in {len(errors)} places with {lost_rows} rows: mend the text, or raise its "
            f"max_error_rate (now {config.max_error_rate}){places}{more} in {out / ERRORS}"
        )
    if not total:
        left_out = "; ".join(f"{count} {why}" for why, count in skipped.items())
        raise InputError(
            "the sources hold no document: add text to them"
            + (f"; left out are {left_out}" if left_out else "")
        )
    return {
        "documents": total,
        "bytes": sum(counts["bytes"] for counts in by_source.values()),
        "errors": kinds,
        "lost_rows": lost_rows,
        "lost_bytes": lost_bytes,
        "lost_share": round(share, 6),
        "places_of_unknown_rows": sum(error["rows"] is None for error in errors),
    }
