"""How every chapter writes rows: Parquet with an explicit schema, never an inferred one, and lines of JSON."""

import datetime
import json
import uuid
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.batches import batches

if TYPE_CHECKING:
    import pyarrow as pa

Schema = dict[str, str]
"""Columns in order: name -> Arrow type."""


def arrow_schema(schema: Schema) -> "pa.Schema":
    """The schema as Arrow has it."""
    import pyarrow as pa

    return pa.schema([pa.field(name, kind) for name, kind in schema.items()])


def write_table(path: Path, rows: list[dict[str, Any]], schema: Schema) -> None:
    """Write rows as one Zstandard Parquet file with exactly this schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(schema)), path, compression="zstd")


def write_tables(path: Path, parts: "list[pa.RecordBatch]", schema: Schema) -> None:
    """Write parts of a table, one after the other, as one Zstandard Parquet file with exactly this schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_batches(parts, schema=arrow_schema(schema)), path, compression="zstd")


def write_arrays(path: Path, columns: dict[str, Any], schema: Schema) -> None:
    """Write arrays, one a column, as one Zstandard Parquet file with exactly this schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = [pa.array(columns[name]).cast(kind) for name, kind in schema.items()]
    pq.write_table(pa.Table.from_arrays(arrays, names=list(schema)), path, compression="zstd")


def read_table(path: Path, columns: list[str] | None = None) -> "pa.Table":
    """Read a Parquet file, or some of its columns."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read(columns=columns)


def read_batches(path: Path, by: str, most: int) -> "Iterator[pa.RecordBatch]":
    """Rows of a Parquet file, some at a time: as many as have together at most so many characters in one of the columns.

    One row that has more stands alone.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(1024):
        for rows in batches(pc.utf8_length(batch.column(by)).to_pylist(), most):
            yield batch.slice(rows.start, len(rows))


def count_rows(path: Path) -> int:
    """Number of rows of a Parquet file, from its footer."""
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def read_column(path: Path, column: str) -> list[Any]:
    """One column of a Parquet file as Python values."""
    return read_table(path, [column]).column(column).to_pylist()


def sorted_json(value: Any) -> str:
    """A value as one line of JSON with sorted keys: equal dictionaries become equal bytes.

    Dates become ISO 8601. Of anything else that JSON has no type for, an image for instance, only its kind is told:
    its text may hold an address of memory.
    """
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_told)


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as lines of JSON with sorted keys, one at a time; they may come from the file that this replaces."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(sorted_json(row) + "\n" for row in rows)
    unfinished.replace(path)


def read_json_lines(path: Path) -> list[Any]:
    """The rows of a file of JSON lines; none if it is not there."""
    # Not splitlines(), for which there are ends of lines that JSON has inside of texts, such as U+2028.
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line] if path.exists() else []


def _told(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal | uuid.UUID):
        return str(value)
    if isinstance(value, datetime.timedelta):
        return f"{value.total_seconds()} s"
    size = f" of {len(value)} bytes" if isinstance(value, bytes) else ""
    return f"({type(value).__name__}{size}, not kept)"
