"""Documents as shards: what every stage that reads from outside writes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from model.errors import InputError
from tasks.engine.stage import Metrics, Parts
from tasks.tables import read_json_lines, sorted_json, write_json_lines, write_table
from tasks.text.content_cuts import Cuts
from tasks.text.documents import (
    DOCUMENTS,
    DOCUMENTS_SCHEMA,
    TEXT_DIGESTS,
    TEXT_DIGESTS_SCHEMA,
    document_digest,
    text_digest,
)
from tasks.text.listing import list_source
from tasks.text.pieces import TextPiece
from tasks.text.readers import read_piece
from tasks.text.records import Convert, Record
from tasks.text.sources import IngestConfig, profile_of

ERRORS = "figures/errors.jsonl"
"""What could not be read, a line each: source, where, error, the line of its file from 1 if it has lines, and the rows (null
if unknown) and bytes that are lost."""
SKIPPED = "figures/skipped.jsonl"
"""What was not read, a line each: source, where, why."""
PIECES = "figures/pieces.jsonl"
"""What was read, a piece a line."""


class _ShardWriter:
    """Cuts the stream of documents into shards where the documents themselves say so.

    Args:
        keeps_together: cut only what would be larger than three typical shards.
    """

    def __init__(self, out: Path, shard_bytes: int, *, keeps_together: bool) -> None:
        self.out, self.keeps_together = out, keeps_together
        self.cuts = Cuts(shard_bytes)
        self.rows: list[dict[str, Any]] = []
        self.n_shards = 0

    def add(self, row: dict[str, Any]) -> None:
        size = len(row["text"].encode())
        if self.cuts.ends_before(size):
            self.flush()
        self.rows.append(row)
        if self.cuts.ends_after(document_digest(row["id"], row["text"]), size) and not self.keeps_together:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            folder = self.out / "shards" / f"{self.n_shards:05d}"
            write_table(folder / DOCUMENTS, self.rows, DOCUMENTS_SCHEMA)
            digests = [{"digest": text_digest(row["text"])} for row in self.rows]
            write_table(folder / TEXT_DIGESTS, digests, TEXT_DIGESTS_SCHEMA)
            self.n_shards += 1
        self.rows = []
        self.cuts.begin()


def _error_of(record: Record) -> str | None:
    if record.error is None and not (record.text or "").strip():
        return "no text"
    return record.error


def write_documents(config: IngestConfig, pieces: Sequence[Any], out: Path, convert: Convert) -> Metrics:
    """Write shards/NNNNN/documents.parquet and digests.parquet in the order of source, path and row, and errors.jsonl.

    The id of a document is its source, file and row: what else there is changes none.

    Args:
        pieces: what is read, as `list_pieces` gives them.
        convert: makes a document of a row.
    """
    parsed = [TextPiece.model_validate(piece) for piece in pieces]
    # A group of small files is as large as a shard.
    is_group = len(parsed) == 1 and len(parsed[0].files) > 1
    writer = _ShardWriter(out, parsed[0].shard_bytes, keeps_together=is_group)
    by_source: dict[str, dict[str, int]] = {}
    errors: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    text_fields: dict[str, int] = {}
    read_bytes = 0
    for source, record in chain.from_iterable(read_piece(config, piece, convert) for piece in parsed):
        counts = by_source.setdefault(source.name, {"documents": 0, "bytes": 0, "errors": 0})
        where = record.where if record.row is None else f"{record.where}:{record.row}"
        if record.is_other:
            others.append({"source": source.name, "where": where, "why": str(record.error)})
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
            "profile": profile_of(source, record.where),
        }
        writer.add({**row, "metadata": sorted_json(record.metadata or {})})
    writer.flush()
    write_json_lines(out / ERRORS, errors)
    write_json_lines(out / SKIPPED, others)
    return {
        "documents": sum(counts["documents"] for counts in by_source.values()),
        "bytes": sum(counts["bytes"] for counts in by_source.values()),
        "errors": dict(Counter(error["error"] for error in errors)),
        "lost_rows": sum(error["rows"] or 0 for error in errors),
        "lost_bytes": sum(error["bytes"] for error in errors),
        "read_bytes": read_bytes,
        "places_of_unknown_rows": sum(error["rows"] is None for error in errors),
        "text_fields": text_fields,
        "shards": writer.n_shards,
        "sources": by_source,
    }


_MOST_PLACES = 5


def _place(error: dict[str, Any]) -> str:
    """Where an error is, as an editor counts, and what it is."""
    where = f"{error['where'].rpartition(':')[0]}, line {error['line']}" if error["line"] else error["where"]
    return f"{where}: {error['error']}"


def _rows_of(parts: Parts, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of each part, one part at a time."""
    return (row for folder in parts.folders for row in read_json_lines(folder / name))


def _left_out(config: IngestConfig, parts: Parts) -> Iterator[dict[str, Any]]:
    """What is not read: of the listings, then of what was read."""
    for source in config.sources:
        for where, why in list_source(source).skipped:
            yield {"source": source.name, "where": where, "why": why}
    yield from _rows_of(parts, SKIPPED)


def _counted(rows: Iterator[dict[str, Any]], reasons: Counter[str]) -> Iterator[dict[str, Any]]:
    """The same rows, whose reasons are counted meanwhile."""
    for row in rows:
        reasons[row["why"]] += 1
        yield row


def finish_reading(config: IngestConfig, parts: Parts) -> Metrics:
    """Documents, bytes, errors by kind, how much is lost with them, and what is left out; lists all of it below figures/.

    Raises:
        InputError: if nothing can be read, or more than `max_error_rate` cannot.
    """
    metrics = dict(parts.metrics)
    n_errors, reasons = sum(metrics["errors"].values()), Counter[str]()
    # One piece after another: of a crawl there may be more of them than documents.
    write_json_lines(parts.out / ERRORS, _rows_of(parts, ERRORS))
    write_json_lines(parts.out / SKIPPED, _counted(_left_out(config, parts), reasons))
    write_json_lines(parts.out / PIECES, parts.pieces or ())
    left_out = dict(sorted(reasons.items()))
    lost = metrics["lost_bytes"]
    share = lost / max(1, lost + metrics.pop("read_bytes"))
    total = metrics["documents"]
    if n_errors and (not total or share > config.max_error_rate):
        first = islice(_rows_of(parts, ERRORS), _MOST_PLACES)
        places = "".join(f"\n  {_place(error)}" for error in first)
        more = (
            f"\n  and {n_errors - _MOST_PLACES:,} more, all of them"
            if n_errors > _MOST_PLACES
            else "\n  all of them are"
        )
        raise InputError(
            f"{share:.1%} of the bytes cannot be used, in {n_errors} places with {metrics['lost_rows']} rows: mend the text, "
            f"or raise its max_error_rate (now {config.max_error_rate}){places}{more} in {parts.out / ERRORS}"
        )
    for name, counts in metrics["sources"].items():
        if total and counts["errors"] and not counts["documents"] and not counts.get("not taken"):
            error = next(error for error in _rows_of(parts, ERRORS) if error["source"] == name)
            raise InputError(
                f"nothing of the source {name!r} can be used, in {counts['errors']} places: mend it, or leave it out\n"
                f"  {_place(error)}\n  all of them are in {parts.out / ERRORS}"
            )
    if not total:
        told = "; ".join(f"{count} {why}" for why, count in left_out.items())
        raise InputError(
            "the sources hold no document: add text to them" + (f"; left out are {told}" if told else "")
        )
    return {**metrics, "lost_share": round(share, 6), "skipped": left_out}
