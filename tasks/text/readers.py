"""Reading rows: files of text, JSON lines and Parquet, and datasets; what cannot be read becomes a record too."""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from model.errors import InputError
from tasks.dataset_folders import check_dataset_folder
from tasks.engine.progress import progress
from tasks.tables import sorted_json
from tasks.text.sources import IngestConfig, Source, files_of, hub_commit, suffix_of

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
    """

    where: str
    row: int | None
    text: str | None = None
    own_id: str | None = None
    metadata: dict[str, Any] | None = None
    error: str | None = None
    size: int = 0
    rows: int | None = 1


Convert = Callable[[Source, str, int, Any], Record]
"""Source, file, row and value of a row -> the document that it holds."""


def from_mapping(source: Source, where: str, row: int, value: Any) -> Record:
    """The document of a row with fields."""
    if not isinstance(value, dict):
        return Record(where, row, error="not an object with fields")
    text = value.get(source.text_field)
    if not isinstance(text, str):
        kind = "is missing" if source.text_field not in value else f"is {type(text).__name__}, not text"
        return Record(where, row, error=f"field {source.text_field!r} {kind}")
    own_id = value.get(source.id_field)
    metadata = {
        name: item for name, item in value.items() if name not in (source.text_field, source.id_field)
    }
    if own_id is not None and not isinstance(own_id, str | int):
        return Record(
            where,
            row,
            error=f"field {source.id_field!r} is {type(own_id).__name__}, not a name or number",
        )
    return Record(where, row, text, None if own_id is None else str(own_id), metadata)


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


def _open_lines(path: Path, suffix: str) -> tuple[BinaryIO, BinaryIO]:
    """A file, and a reader of what it holds, decompressed. An end in the middle of a compressed stream is an error."""
    import pyarrow as pa

    raw = path.open("rb")
    if suffix.endswith(".gz"):
        return raw, gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if suffix.endswith(".zst"):
        # Of the readers at hand the one that reads several frames and minds a cut one. The last 8 KiB before a
        # fault are lost with it.
        return raw, io.BufferedReader(pa.input_stream(raw, compression="zstd"))
    return raw, raw


def _read_lines(
    source: Source, where: str, path: Path, suffix: str, convert: Convert, limit: int
) -> Iterator[Record]:
    """Every record of a file of JSON lines, and what was lost of it: no line takes more memory than the limit."""
    import pyarrow as pa

    row, read, size = -1, 0, path.stat().st_size
    raw, lines = _open_lines(path, suffix)
    with raw, lines:
        try:
            while line := lines.readline(limit + 1):
                row += 1
                length = len(line)
                while not line.endswith(b"\n") and (more := lines.readline(1 << 20)):
                    length += len(more)
                    line = line[:limit] + more[-1:]  # the end of the line, and not all of it
                read += length
                if length > limit:
                    yield Record(where, row, error=_TOO_LARGE, size=length)
                elif line.strip():
                    yield _kept(_parsed(source, where, row, line, convert), length, limit)
        except (OSError, EOFError, zlib.error, pa.ArrowException, MemoryError) as error:
            rest = f" after row {row}" if row >= 0 else ""
            # What is left of a compressed file would have grown as what was read of it did.
            consumed = max(1, raw.tell()) if not raw.closed else size
            lost = round(max(1, size - consumed) * max(1.0, read / consumed))
            yield Record(
                where, row + 1, error=f"unreadable{rest}: {type(error).__name__}", size=lost, rows=None
            )


def _parsed(source: Source, where: str, row: int, line: bytes, convert: Convert) -> Record:
    try:
        value = json.loads(line)
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


def _read_text(where: str, path: Path, limit: int) -> Record:
    size = path.stat().st_size
    if size > limit:
        return Record(where, None, error=_TOO_LARGE, size=size)
    try:
        return Record(where, None, path.read_bytes().decode("utf-8-sig"), size=size)
    except UnicodeDecodeError as error:
        return Record(where, None, error=f"not UTF-8 at byte {error.start}", size=size)


def read_file(source: Source, where: str, path: Path, convert: Convert, limit: int) -> Iterator[Record]:
    """Every record of a file; what cannot be read becomes a record with an error.

    Args:
        limit: largest line or document, in bytes.
    """
    suffix = suffix_of(path) or ".jsonl"
    try:
        if suffix == ".parquet":
            yield from _read_parquet(source, where, path, convert, limit)
        elif not path.stat().st_size:
            yield Record(where, None, error=_EMPTY, rows=0)
        elif suffix == ".txt":
            yield _read_text(where, path, limit)
        else:
            yield from _read_lines(source, where, path, suffix, convert, limit)
    except (OSError, MemoryError) as error:
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
