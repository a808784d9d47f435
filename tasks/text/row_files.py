"""Files of rows: JSON lines, JSON, tables and Parquet. Every row becomes a record, also one that cannot be read."""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from tasks.text.pieces import Lines, RowGroups
from tasks.text.records import (
    EMPTY_FILE,
    TOO_LARGE,
    UTF_16_MARKS,
    Convert,
    Reading,
    Record,
    Unkept,
    from_mapping,
    kept_record,
    no_text,
    open_file,
    read_whole,
    reading_faults,
    text_field_of,
)
from tasks.text.sources import Kind, Source

_BATCH_BYTES = 16_000_000
_SMALL_GROUP_BYTES = 32_000_000
"""Of a row group of at most so much, unpacked, equal texts are one in memory. pyarrow holds all texts of the group for that."""
_MOST_OF_A_BATCH_BYTES = 400_000_000
"""What the rows of a batch may come to if each of them is all that the row group holds."""
_BYTE_ARRAYS = ("string", "large_string", "binary", "large_binary")


def read_lines(
    source: Source,
    where: str,
    path: Path,
    kind: Kind,
    convert: Convert,
    limit: int,
    part: Lines | None = None,
) -> Iterator[Record]:
    """Every record of a file of JSON lines, and what was lost of it: no line takes more memory than the limit.

    Args:
        part: range of lines; all if None.
    """
    reading = Reading(where, path)
    section = None if part is None else (part.offset, part.size)
    if part is not None:
        reading.row, reading.size, reading.is_range = part.first_row - 1, part.size, True
    raw, lines = open_file(path, kind.compression, section, source.encoding)
    with raw, lines:
        try:
            while line := lines.readline(limit + 1):
                if reading.row < 0 and line[:2] in UTF_16_MARKS:
                    sentence = "lines of JSON in UTF-16: set encoding to utf-16"
                    yield Record(where, None, error=sentence, size=reading.size, rows=None)
                    return
                reading.row += 1
                length = len(line)
                while not line.endswith(b"\n") and (more := lines.readline(1 << 20)):
                    length += len(more)
                    line = line[:limit] + more[-1:]  # the end of the line, and not all of it
                reading.read += length
                if length > limit:
                    yield Record(where, reading.row, error=TOO_LARGE, size=length, line=reading.row + 1)
                elif line.strip():
                    parsed = kept_record(_parsed(source, where, reading.row, line, convert), length, limit)
                    yield replace(parsed, line=reading.row + 1)
        except reading_faults() as error:
            yield reading.broken(error, raw)


def read_table_rows(
    source: Source, where: str, path: Path, kind: Kind, convert: Convert, limit: int
) -> Iterator[Record]:
    """Every record of a table of comma- or tab-separated values whose first row names its columns (RFC 4180)."""
    reading = Reading(where, path)
    raw, lines = open_file(path, kind.compression, encoding=source.encoding)
    with raw, lines:
        try:
            text = _decoded(reading, lines, limit)
            head = next((line for line in text if line.strip()), "")
            # Where the comma is the decimal mark, spreadsheets separate by semicolons.
            separator = "\t" if kind.suffix == ".tsv" else ";" if ";" in head and "," not in head else ","
            csv.field_size_limit(limit)
            rows = csv.reader(chain([head], text), delimiter=separator, strict=True)
            names: list[str] | None = None
            begun = 0
            while (values := _next_row(rows)) is not None:
                size, begun = reading.read - begun, reading.read
                if names is None:
                    if isinstance(values, csv.Error):
                        sentence = f"no table: its first row cannot be read ({values})"
                        yield Record(where, None, error=sentence, size=reading.size, rows=None)
                        return
                    names = [name.strip() for name in values]
                    twice = next((name for name in names if names.count(name) > 1 and name), None)
                    if twice is not None:
                        sentence = f"a table with two columns {twice!r}"
                        yield Record(where, None, error=sentence, size=reading.size, rows=None)
                        return
                    if convert is from_mapping and not source.text_field and not text_field_of(source, names):
                        yield Record(
                            where, None, error=f"a table with {no_text(source, names)}", is_other=True
                        )
                        return
                    continue
                reading.row += 1
                if isinstance(values, csv.Error):
                    sentence, is_rest = f"no row of a table ({values})", "unexpected end" in str(values)
                    rows_lost = None if is_rest else 1
                    yield Record(where, reading.row, error=sentence, size=size, rows=rows_lost)
                elif len(values) != len(names) and values:
                    sentence = f"{len(values)} values for {len(names)} columns"
                    yield Record(where, reading.row, error=sentence, size=size)
                elif values:
                    row = dict(zip(names, values, strict=True))
                    yield kept_record(convert(source, where, reading.row, row), size, limit)
        except reading_faults() as error:
            yield reading.broken(error, raw)


def _next_row(rows: Iterator[list[str]]) -> list[str] | csv.Error | None:
    """The next row of a table, or what is wrong with it; None at the end."""
    try:
        return next(rows, None)
    except csv.Error as error:
        return error


def _decoded(reading: Reading, lines: BinaryIO, limit: int) -> Iterator[str]:
    """The lines of a file as text; one that is longer than the limit comes in parts, and what cannot be decoded as surrogates.

    A file that begins with the mark of UTF-16 is in that, as spreadsheets write it.
    """
    beginning = lines.peek(2)[:2] if isinstance(lines, io.BufferedReader | gzip.GzipFile) else b""
    if beginning in UTF_16_MARKS:
        decoded = io.TextIOWrapper(lines, "utf-16", newline="\n")
        while text := decoded.readline(limit + 1):
            reading.read += 2 * len(text)
            yield text
        return
    while line := lines.readline(limit + 1):
        utf_8 = "utf-8" if reading.read else "utf-8-sig"
        reading.read += len(line)
        yield line.decode(utf_8, "surrogateescape")


def _no_json(source: Source, error: Exception) -> str:
    return f"not JSON in {(source.encoding or 'utf-8').upper()} ({type(error).__name__})"


def read_json_rows(
    source: Source, where: str, path: Path, kind: Kind, convert: Convert, limit: int
) -> Iterator[Record]:
    """The records of a file of JSON: a list of objects, an object that holds one, or one object."""
    whole = read_whole(path, kind.compression, limit, source.encoding)
    if whole is None:
        yield Record(where, None, error=TOO_LARGE, size=path.stat().st_size)
        return
    try:
        value = json.loads(whole)
    except (ValueError, RecursionError) as error:
        yield Record(where, None, error=_no_json(source, error), size=len(whole), rows=None)
        return
    own = None if convert is from_mapping else convert(source, where, 0, value)
    if isinstance(value, dict) and text_field_of(source, value) is None and (own is None or own.error):
        lists = [
            item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)
        ]
        value = lists[0] if len(lists) == 1 else value
    rows = value if isinstance(value, list) else [value]
    first = next((row for row in rows if isinstance(row, dict)), None)
    if (
        source.text_field is None
        and convert is from_mapping
        and (first is None or text_field_of(source, first) is None)
    ):
        names = f"a file of JSON with {no_text(source, first)}" if first else "a file of JSON without objects"
        yield Record(where, None, error=names, is_other=True)
        return
    size = len(whole) // max(1, len(rows))
    for row, item in enumerate(rows):
        yield kept_record(convert(source, where, row, item), size, limit)


def _row_of(batch: Any) -> dict[str, Any]:
    """The only row of a batch, without the values that have no form in Python: a date before the year 1, a time zone that
    this computer does not know."""
    try:
        return batch.to_pylist()[0]
    except Exception:  # what is wrong with a value, its column below says again
        row = {}
        for name in batch.schema.names:
            try:
                (row[name],) = batch.column(name).to_pylist()
            except Exception:
                row[name] = Unkept("(a value out of bounds, not kept)")
        return row


def _parsed(source: Source, where: str, row: int, line: bytes, convert: Convert) -> Record:
    try:
        value = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        return Record(where, row, error=f"not JSON at column {error.colno} ({error.msg})")
    except (ValueError, RecursionError) as error:
        return Record(where, row, error=_no_json(source, error))
    return convert(source, where, row, value)


def _twice(source: Source, names: list[str]) -> str | None:
    """Which column of those that hold the text and the id there are two of."""
    wanted = [name for name in (text_field_of(source, names), source.id_field) if name]
    columns = {own for name in wanted for own in (name, name.partition(".")[0])}
    return next((name for name in names if name in columns and names.count(name) > 1), None)


def _delta_columns(file: Any) -> set[str]:
    """Columns of a Parquet file with an encoding by differences, which pyarrow cannot read as a dictionary."""
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    return {column.path_in_schema for column in columns if any("DELTA" in name for name in column.encodings)}


def _kept_once_bytes(group: Any, but: set[str]) -> int:
    """Bytes, unpacked, of the columns of a row group of Parquet in which a text that is repeated is kept once; but for some."""
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(
        column.total_uncompressed_size
        for column in columns
        if column.physical_type.endswith("BYTE_ARRAY")
        and column.path_in_schema not in but
        and any("DICTIONARY" in name or name == "DELTA_BYTE_ARRAY" for name in column.encodings)
    )


def read_parquet_rows(
    source: Source, where: str, path: Path, convert: Convert, limit: int, part: RowGroups | None = None
) -> Iterator[Record]:
    """Every record of a Parquet file, or of a range of its row groups; of a damaged one, those of its whole row groups.

    The footer says how many rows and bytes are lost with a row group. Memory is that of some rows, however large a row
    group is, and however often it repeats a text that it keeps once.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    faults = (OSError, pa.ArrowException, MemoryError, ValueError, OverflowError)
    try:
        opened = partial(pq.ParquetFile, path, page_checksum_verification=True)
        # A page at a time, where pyarrow by itself reads all of a row group's column.
        file = opened(buffer_size=2**20, pre_buffer=False)
        schema = file.schema_arrow
        texts = {field.name for field in schema if str(field.type) in _BYTE_ARRAYS} - _delta_columns(file)
        small = opened(read_dictionary=sorted(texts))
    except faults as error:
        size = path.stat().st_size
        yield Record(where, None, error=f"unreadable: {type(error).__name__}", size=size, rows=None)
        return
    if convert is from_mapping and text_field_of(source, schema.names) is None and not source.text_field:
        yield Record(where, None, error=f"a table with {no_text(source, schema.names)}", is_other=True)
        return
    if twice := _twice(source, schema.names):
        size = path.stat().st_size
        yield Record(where, None, error=f"a table with two columns {twice!r}", size=size, rows=None)
        return
    first = part.first_row if part else 0
    for group in range(part.first, part.end) if part else range(file.metadata.num_row_groups):
        footer = file.metadata.row_group(group)
        row, row_size = first, max(1, footer.total_byte_size // max(1, footer.num_rows))
        first += footer.num_rows
        try:
            rows, reader = min(1024, _BATCH_BYTES // row_size), small
            if footer.total_byte_size > _SMALL_GROUP_BYTES:
                # Whatever the footer says of encodings: it is the pages that count.
                reader, most = file, footer.total_byte_size
            else:
                most = _kept_once_bytes(footer, texts)
            rows = min(rows, _MOST_OF_A_BATCH_BYTES // max(1, most))
            for batch in reader.iter_batches(max(1, rows), row_groups=[group]):
                for i in range(batch.num_rows):
                    value = _row_of(batch.slice(i, 1))
                    yield kept_record(convert(source, where, row, value), row_size, limit)
                    row += 1
        except faults as error:
            rest, lost = f" after row {row - 1}" if row else "", first - row
            yield Record(
                where, row, error=f"unreadable{rest}: {type(error).__name__}", size=lost * row_size, rows=lost
            )
    if not file.metadata.num_rows:
        yield Record(where, None, error=EMPTY_FILE, rows=0)


def read_arrow_rows(source: Source, where: str, path: Path, convert: Convert, limit: int) -> Iterator[Record]:
    """Every record of a file of Arrow, as a file or as a stream (Arrow columnar format, section IPC); Feather is one, too."""
    import pyarrow as pa

    faults = (OSError, pa.ArrowException, ValueError, OverflowError)
    row, size = 0, path.stat().st_size
    try:
        with pa.OSFile(str(path)) as file:
            try:
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            except pa.ArrowInvalid:
                file.seek(0)
                reader = pa.ipc.open_stream(file)
                batches = iter(reader)
            if convert is from_mapping and text_field_of(source, reader.schema.names) is None:
                sentence = f"a table with {no_text(source, reader.schema.names)}"
                yield Record(where, None, error=sentence, is_other=True)
                return
            if twice := _twice(source, reader.schema.names):
                yield Record(where, None, error=f"a table with two columns {twice!r}", size=size, rows=None)
                return
            for batch in batches:
                batch.validate(full=True)
                row_size = max(1, batch.nbytes // max(1, batch.num_rows))
                for number in range(batch.num_rows):
                    value = _row_of(batch.slice(number, 1))
                    yield kept_record(convert(source, where, row, value), row_size, limit)
                    row += 1
                size = max(1, size - batch.nbytes)
    except faults as error:
        rest = f" after row {row - 1}" if row else ""
        sentence = f"unreadable{rest}: {type(error).__name__}"
        yield Record(where, row, error=sentence, size=size, rows=None)
        return
    if not row:
        yield Record(where, None, error=EMPTY_FILE, rows=0)
