"""Reading documents: files of text, HTML, JSON, tables and Parquet, and datasets; what cannot be read becomes a record too."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from model.errors import InputError
from tasks.dataset_folders import check_dataset_folder
from tasks.engine.progress import progress
from tasks.tables import sorted_json
from tasks.text.cut import LARGE_BYTES, cut_text, has_pages
from tasks.text.sources import IngestConfig, Kind, Source, files_of, hub_commit, kind_of

_BATCH_BYTES = 16_000_000
_TOO_LARGE, _EMPTY = "larger than ingest.max_document_bytes", "an empty file"
_BYTE_ARRAYS = ("string", "large_string", "binary", "large_binary")


@dataclass(frozen=True)
class Record:
    """A document, or the reason why there is none.

    Attributes:
        where: file below its source, or split of a dataset.
        row: position in it, counted from 0; None if the file is the document.
        own_id: what its field `id_field` calls it.
        size: of the row, in bytes of its file after decompression; of an error, what is lost with it.
        rows: rows that are lost with an error; None if nobody can tell.
        text_field: which field the text is from, if the recipe does not say it.
        is_other: the file holds something else than documents, which is no error.
        line: in a file of lines, counted from 1, for a person with an editor.
    """

    where: str
    row: int | None
    text: str | None = None
    own_id: str | None = None
    metadata: dict[str, Any] | None = None
    error: str | None = None
    size: int = 0
    rows: int | None = 1
    text_field: str | None = None
    is_other: bool = False
    line: int | None = None


Convert = Callable[[Source, str, int, Any], Record]
"""Source, file, row and value of a row -> the document that it holds."""


TEXT_FIELDS = ("text", "content", "body", "document", "article", "passage")
"""What the field with the text is called, where the recipe does not say; of several the first if it is `text`, else none."""


def text_field_of(source: Source, names: Iterable[str]) -> str | None:
    """Which of these fields holds the text of a row; None if that cannot be told."""
    if source.text_field is not None:
        return source.text_field if source.text_field in names else None
    there = [name for name in TEXT_FIELDS if name in names]
    return there[0] if len(there) == 1 or "text" in there else None


def _no_text(source: Source, names: Iterable[str]) -> str:
    """The sentence on a row or table whose text is in no field that is known."""
    told = ", ".join(repr(str(name)[:40]) for name in list(names)[:12]) or "none"
    wanted = "no field" if source.text_field is None else f"no field {source.text_field!r}"
    several = [name for name in TEXT_FIELDS if name in names]
    which = (
        f"{' or '.join(map(repr, several))}" if len(several) > 1 and not source.text_field else "which one"
    )
    return f"{wanted} with the text (its fields: {told}; say {which} in ingest.sources as text_field)"


def from_mapping(source: Source, where: str, row: int, value: Any) -> Record:
    """The document of a row with fields."""
    if not isinstance(value, dict):
        return Record(where, row, error="not an object with fields")
    field = text_field_of(source, value)
    if field is None:
        return Record(where, row, error=_no_text(source, value))
    text = value[field]
    if not isinstance(text, str):
        return Record(where, row, error=f"field {field!r} is {type(text).__name__}, not text")
    own_id = value.get(source.id_field)
    metadata = {name: item for name, item in value.items() if name not in (field, source.id_field)}
    if own_id is not None and not isinstance(own_id, str | int):
        return Record(
            where,
            row,
            error=f"field {source.id_field!r} is {type(own_id).__name__}, not a name or number",
        )
    identifier = None if own_id is None else str(own_id)
    taken = field if source.text_field is None and field != "text" else None
    return Record(where, row, text, identifier, metadata, text_field=taken)


def _kept(record: Record, size: int, limit: int) -> Record:
    """The record with its size, or an error if it cannot be kept."""
    if record.error is not None:
        return replace(record, size=size)

    def fault(sentence: str) -> Record:
        return Record(record.where, record.row, error=sentence, size=size)

    try:
        text = (record.text or "").encode()
        (record.own_id or "").encode()
        metadata = sorted_json(record.metadata or {}).encode()
    except UnicodeEncodeError:
        return fault("the record has a lone surrogate, so it is not Unicode")
    except (TypeError, ValueError, RecursionError) as error:
        return fault(f"its other fields cannot be kept: {type(error).__name__}")
    if len(text) + len(metadata) > limit:
        return fault(_TOO_LARGE)
    return replace(record, size=size)


def _open(path: Path, compression: str) -> tuple[BinaryIO, BinaryIO]:
    """A file, and a reader of what it holds, decompressed. An end in the middle of a compressed stream is an error."""
    import pyarrow as pa

    raw = path.open("rb")
    if compression == ".gz":
        return raw, gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if compression == ".zst":
        # Of the readers at hand the one that reads several frames and minds a cut one. The last 8 KiB before a
        # fault are lost with it.
        return raw, io.BufferedReader(pa.input_stream(raw, compression="zstd"))
    return raw, raw


class _Reading:
    """How far a file is read, so that it can be said what is lost with its rest."""

    def __init__(self, where: str, path: Path) -> None:
        self.where, self.size = where, path.stat().st_size
        self.row, self.read = -1, 0

    def broken(self, error: BaseException, raw: BinaryIO) -> Record:
        """The record of a fault in the middle."""
        rest = f" after row {self.row}" if self.row >= 0 else ""
        # What is left of a compressed file would have grown as what was read of it did.
        consumed = max(1, raw.tell()) if not raw.closed else self.size
        lost = round(max(1, self.size - consumed) * max(1.0, self.read / consumed))
        sentence = f"unreadable{rest}: {type(error).__name__}"
        return Record(self.where, self.row + 1, error=sentence, size=lost, rows=None)


def _faults() -> tuple[type[BaseException], ...]:
    import pyarrow as pa

    return OSError, EOFError, zlib.error, pa.ArrowException, MemoryError


def _read_lines(
    source: Source, where: str, path: Path, kind: Kind, convert: Convert, limit: int
) -> Iterator[Record]:
    """Every record of a file of JSON lines, and what was lost of it: no line takes more memory than the limit."""
    reading = _Reading(where, path)
    raw, lines = _open(path, kind.compression)
    with raw, lines:
        try:
            while line := lines.readline(limit + 1):
                reading.row += 1
                length = len(line)
                while not line.endswith(b"\n") and (more := lines.readline(1 << 20)):
                    length += len(more)
                    line = line[:limit] + more[-1:]  # the end of the line, and not all of it
                reading.read += length
                if length > limit:
                    yield Record(where, reading.row, error=_TOO_LARGE, size=length, line=reading.row + 1)
                elif line.strip():
                    parsed = _kept(_parsed(source, where, reading.row, line, convert), length, limit)
                    yield replace(parsed, line=reading.row + 1)
        except _faults() as error:
            yield reading.broken(error, raw)


def _read_table(
    source: Source, where: str, path: Path, kind: Kind, convert: Convert, limit: int
) -> Iterator[Record]:
    """Every record of a table of comma- or tab-separated values whose first row names its columns (RFC 4180)."""
    reading = _Reading(where, path)
    raw, lines = _open(path, kind.compression)
    with raw, lines:
        try:
            text = _decoded(reading, lines, limit)
            head = next(text, "")
            # Where the comma is the decimal mark, spreadsheets separate by semicolons.
            separator = "\t" if kind.suffix == ".tsv" else ";" if ";" in head and "," not in head else ","
            csv.field_size_limit(limit)
            rows = csv.reader(chain([head], text), delimiter=separator, strict=True)
            names: list[str] | None = None
            begun = 0
            while (values := _next_row(rows)) is not None:
                size, begun = reading.read - begun, reading.read
                if names is None:
                    names = [] if isinstance(values, csv.Error) else [name.strip() for name in values]
                    if convert is from_mapping and not source.text_field and not text_field_of(source, names):
                        yield Record(
                            where, None, error=f"a table with {_no_text(source, names)}", is_other=True
                        )
                        return
                    continue
                reading.row += 1
                if isinstance(values, csv.Error):
                    yield Record(where, reading.row, error=f"no row of a table ({values})", size=size)
                elif len(values) != len(names) and values:
                    sentence = f"{len(values)} values for {len(names)} columns"
                    yield Record(where, reading.row, error=sentence, size=size)
                elif values:
                    row = dict(zip(names, values, strict=True))
                    yield _kept(convert(source, where, reading.row, row), size, limit)
        except _faults() as error:
            yield reading.broken(error, raw)


def _next_row(rows: Iterator[list[str]]) -> list[str] | csv.Error | None:
    """The next row of a table, or what is wrong with it; None at the end."""
    try:
        return next(rows, None)
    except csv.Error as error:
        return error


def _decoded(reading: _Reading, lines: BinaryIO, limit: int) -> Iterator[str]:
    """The lines of a file as text; one that is longer than the limit comes in parts, and what is not UTF-8 as surrogates."""
    while line := lines.readline(limit + 1):
        encoding = "utf-8" if reading.read else "utf-8-sig"
        reading.read += len(line)
        yield line.decode(encoding, "surrogateescape")


def _read_whole(path: Path, kind: Kind, limit: int) -> bytes | None:
    """The content of a file; None if it is larger than the limit."""
    raw, content = _open(path, kind.compression)
    with raw, content:
        whole = content.read(limit + 1)
    return whole if len(whole) <= limit else None


def _read_json(
    source: Source, where: str, path: Path, kind: Kind, convert: Convert, limit: int
) -> Iterator[Record]:
    """The records of a file of JSON: a list of objects, an object that holds one, or one object."""
    whole = _read_whole(path, kind, limit)
    if whole is None:
        yield Record(where, None, error=_TOO_LARGE, size=path.stat().st_size)
        return
    try:
        value = json.loads(whole)
    except (ValueError, RecursionError) as error:
        sentence = f"not JSON in UTF-8 ({type(error).__name__})"
        yield Record(where, None, error=sentence, size=len(whole), rows=None)
        return
    if isinstance(value, dict) and text_field_of(source, value) is None:
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
        names = (
            f"a file of JSON with {_no_text(source, first)}" if first else "a file of JSON without objects"
        )
        yield Record(where, None, error=names, is_other=True)
        return
    size = len(whole) // max(1, len(rows))
    for row, item in enumerate(rows):
        yield _kept(convert(source, where, row, item), size, limit)


def _parsed(source: Source, where: str, row: int, line: bytes, convert: Convert) -> Record:
    try:
        value = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        return Record(where, row, error=f"not JSON at column {error.colno} ({error.msg})")
    except (ValueError, RecursionError) as error:
        return Record(where, row, error=f"not JSON in UTF-8 ({type(error).__name__})")
    return convert(source, where, row, value)


def _read_parquet(source: Source, where: str, path: Path, convert: Convert, limit: int) -> Iterator[Record]:
    """Every record of a Parquet file; of a damaged one, those of its whole row groups.

    The footer says how many rows and bytes are lost with a row group. Equal texts stay one in memory, so that a
    small file cannot become a large one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    faults = (OSError, pa.ArrowException, MemoryError, ValueError, OverflowError)
    try:
        schema = pq.read_schema(path)
        texts = [field.name for field in schema if str(field.type) in _BYTE_ARRAYS]
        file = pq.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True)
    except faults as error:
        size = path.stat().st_size
        yield Record(where, None, error=f"unreadable: {type(error).__name__}", size=size, rows=None)
        return
    first = 0
    for group in range(file.metadata.num_row_groups):
        footer = file.metadata.row_group(group)
        row, row_size = first, max(1, footer.total_byte_size // max(1, footer.num_rows))
        first += footer.num_rows
        try:
            for batch in file.iter_batches(max(1, min(1024, _BATCH_BYTES // row_size)), row_groups=[group]):
                for i in range(batch.num_rows):
                    try:
                        (value,) = batch.slice(i, 1).to_pylist()
                    except faults as error:
                        yield Record(
                            where, row, error=f"a value out of bounds: {type(error).__name__}", size=row_size
                        )
                    else:
                        yield _kept(convert(source, where, row, value), row_size, limit)
                    row += 1
        except faults as error:
            rest, lost = f" after row {row - 1}" if row else "", first - row
            yield Record(
                where, row, error=f"unreadable{rest}: {type(error).__name__}", size=lost * row_size, rows=lost
            )
    if not file.metadata.num_rows:
        yield Record(where, None, error=_EMPTY, rows=0)


def _decode(where: str, row: int | None, whole: bytes, size: int) -> Record:
    """A document of text: UTF-8, or UTF-16 with a byte order mark."""
    encoding = "utf-16" if whole[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return Record(where, row, whole.decode(encoding), size=size)
    except UnicodeDecodeError as error:
        name = "UTF-16" if encoding == "utf-16" else "UTF-8"
        return Record(where, row, error=f"not {name} at byte {error.start}", size=size)


def _read_text(source: Source, where: str, path: Path, kind: Kind, limit: int) -> Iterator[Record]:
    """The documents of a file of text: itself, or what it is cut into."""
    reading, how = _Reading(where, path), source.cut
    raw, content = _open(path, kind.compression)
    with raw, content:
        try:
            beginning = content.read(LARGE_BYTES + 1)
            is_utf16 = beginning[:2] in (b"\xff\xfe", b"\xfe\xff")
            if how == "auto":
                is_large = len(beginning) > LARGE_BYTES and not is_utf16
                how = "none" if not is_large else "pages" if has_pages(beginning) else "paragraphs"
            if how == "none":
                whole = beginning + content.read(max(0, limit + 1 - len(beginning)))
                if len(whole) > limit:
                    yield Record(where, None, error=_TOO_LARGE, size=reading.size)
                else:
                    yield _decode(where, None, whole, len(whole))
                return
            for piece in cut_text(_Rest(beginning, content), how, source.cut_bytes, limit):
                reading.row, reading.read = reading.row + 1, reading.read + len(piece)
                if piece.strip():
                    yield _decode(where, reading.row, piece, len(piece))
        except _faults() as error:
            yield reading.broken(error, raw)


class _Rest:
    """A file of which the beginning was read already, line by line."""

    def __init__(self, beginning: bytes, file: BinaryIO) -> None:
        self.beginning, self.file = io.BytesIO(beginning), file

    def readline(self, size: int) -> bytes:
        """The next line, or a part of it of this size."""
        line = self.beginning.readline(size)
        if line.endswith(b"\n") or len(line) == size:
            return line
        return line + self.file.readline(size - len(line))


def _read_page(where: str, path: Path, kind: Kind, limit: int) -> Record:
    from tasks.text.html import BadPage, text_of_page

    whole = _read_whole(path, kind, limit)
    if whole is None:
        return Record(where, None, error=_TOO_LARGE, size=path.stat().st_size)
    try:
        return _kept(Record(where, None, text_of_page(whole)), len(whole), limit)
    except BadPage as error:
        return Record(where, None, error=str(error), size=len(whole))


def read_file(source: Source, where: str, path: Path, convert: Convert, limit: int) -> Iterator[Record]:
    """Every record of a file; what cannot be read becomes a record with an error.

    Args:
        limit: largest line or document, in bytes.
    """
    kind = kind_of(path) or Kind("lines", ".jsonl", "")
    try:
        if kind.of != "parquet" and not path.stat().st_size:
            yield Record(where, None, error=_EMPTY, rows=0)
            return
        match kind.of:
            case "parquet":
                yield from _read_parquet(source, where, path, convert, limit)
            case "text" | "html" if convert is not from_mapping:
                yield Record(where, None, error="text, and no rows", is_other=True)
            case "text":
                yield from _read_text(source, where, path, kind, limit)
            case "html":
                yield _read_page(where, path, kind, limit)
            case "table":
                yield from _read_table(source, where, path, kind, convert, limit)
            case "json":
                yield from _read_json(source, where, path, kind, convert, limit)
            case _:
                yield from _read_lines(source, where, path, kind, convert, limit)
    except _faults() as error:
        yield Record(where, None, error=f"unreadable: {type(error).__name__}", size=_size_of(path), rows=None)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _open_dataset(source: Source) -> Iterable[Any]:
    import datasets

    folder = source.dataset_folder
    if folder:
        check_dataset_folder(folder, source.subset, "ingest.sources")
    if folder and ((folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists()):
        loaded = datasets.load_from_disk(str(folder))
        return loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
    name = str(source.dataset)
    revision = None if folder else hub_commit(name)
    return datasets.load_dataset(
        str(folder or name), name=source.subset, split=source.split, streaming=True, revision=revision
    )


def read_dataset(source: Source, convert: Convert, limit: int) -> Iterator[Record]:
    """Every record of a Hugging Face dataset.

    Raises:
        InputError: if it cannot be opened.
    """
    try:
        rows = _open_dataset(source)
    except (ValueError, KeyError, OSError) as error:
        sentence = " ".join(str(error).split())[:200]
        raise InputError(
            f"ingest.sources: the dataset of {source.name!r} ({source.path}, split {source.split!r}) "
            f"cannot be opened: {sentence}"
        ) from error
    for row, value in enumerate(rows):
        size = sum(len(str(item)) for item in value.values()) if isinstance(value, dict) else 0
        yield _kept(convert(source, source.split, row, value), size, limit)


def read_sources(config: IngestConfig, convert: Convert) -> Iterator[tuple[Source, Record]]:
    """Every record of every source, in the order of source, path and row."""
    for source in config.sources:
        if source.dataset is not None:
            for record in read_dataset(source, convert, config.max_document_bytes):
                yield source, record
            continue
        files = files_of(source).by_name
        for i, (name, path) in enumerate(files.items()):
            for record in read_file(source, name, path, convert, config.max_document_bytes):
                yield source, record
            progress(i + 1, len(files), f"files of {source.name}")


def _stamps(source: Any) -> dict[str, Any]:
    """Size and SHA-256 by relative path, in the fingerprint of one source of files."""
    return {name: stamp for name, *stamp in source.get("files", ())}


def unread_texts(config: IngestConfig, before: list[Any], now: list[Any]) -> Iterator[str]:
    """The texts of the documents in the files that were changed or added.

    Args:
        before, now: fingerprints of the sources, as `fingerprint_sources` gives them. A dataset
            of another commit, and a source that is new, are read as a whole.
    """
    limit = config.max_document_bytes
    contents = {tuple(stamp) for source in before for stamp in _stamps(source).values()}
    for source, current in zip(config.sources, now, strict=True):
        if current in before:
            continue
        if source.dataset is not None:
            records: Iterable[Record] = read_dataset(source, from_mapping, limit)
        else:
            stamps, names = _stamps(current), files_of(source).by_name
            new = {name: path for name, path in names.items() if tuple(stamps[name]) not in contents}
            records = (
                record
                for name, path in new.items()
                for record in read_file(source, name, path, from_mapping, limit)
            )
        yield from (
            record.text for record in records if (record.text or "").strip() and record.text is not None
        )
