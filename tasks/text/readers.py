"""Reading rows: files of text, JSON lines and Parquet, and datasets; what cannot be read becomes a record too."""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from tasks.dataset_folders import check_dataset_folder
from tasks.engine.progress import progress
from tasks.tables import sorted_json
from tasks.text.sources import IngestConfig, Source, files_of, hub_commit, relative_name, suffix_of


@dataclass(frozen=True)
class Record:
    """A document, or the reason why there is none.

    Attributes:
        where: file below its source, or split of a dataset.
        row: position in it, counted from 0; None if the file is the document.
    """

    where: str
    row: int | None
    text: str | None = None
    identifier: str | None = None
    metadata: dict[str, Any] | None = None
    error: str | None = None


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
    identifier = value.get(source.id_field)
    metadata = {
        name: item for name, item in value.items() if name not in (source.text_field, source.id_field)
    }
    if identifier is not None and not isinstance(identifier, str | int):
        return Record(
            where,
            row,
            error=f"field {source.id_field!r} is {type(identifier).__name__}, not a name or number",
        )
    try:
        for part in (text, str(identifier), sorted_json(metadata)):
            part.encode()
    except UnicodeEncodeError:
        return Record(where, row, error="the record has a lone surrogate, so it is not Unicode")
    except (TypeError, ValueError) as error:
        return Record(where, row, error=f"its other fields cannot be kept: {type(error).__name__}")
    return Record(where, row, text, None if identifier is None else str(identifier), metadata)


def _lines(path: Path, suffix: str) -> Iterator[bytes]:
    """Lines of a file, decompressed.

    An end in the middle of a compressed stream is an error, after the lines before it; of zstd the last
    8 KiB before the fault are lost with it.
    """
    import pyarrow as pa

    with path.open("rb") as raw:
        if suffix.endswith(".gz"):
            yield from gzip.GzipFile(fileobj=raw)
        elif suffix.endswith(".zst"):
            # Of the readers at hand the one that reads several frames and minds a cut one.
            yield from io.BufferedReader(pa.input_stream(raw, compression="zstd"))
        else:
            yield from raw


def read_file(source: Source, where: str, path: Path, convert: Convert) -> Iterator[Record]:
    """Every record of a file; what cannot be read becomes a record with an error."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    suffix = suffix_of(path)
    row: int | None = None
    try:
        if suffix == ".txt":
            yield Record(where, None, path.read_bytes().decode("utf-8-sig"))
        elif suffix == ".parquet":
            row = 0
            for batch in pq.ParquetFile(path).iter_batches():
                for value in batch.to_pylist():
                    yield convert(source, where, row, value)
                    row += 1
        else:
            for row, line in enumerate(_lines(path, suffix or ".jsonl")):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield Record(where, row, error=f"not JSON in UTF-8 ({type(error).__name__})")
                    continue
                yield convert(source, where, row, value)
    except UnicodeDecodeError as error:
        yield Record(where, row, error=f"not UTF-8 at byte {error.start}")
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        rest = "" if row is None else f" after row {row}"
        yield Record(where, row, error=f"unreadable{rest}: {type(error).__name__}")


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


def read_dataset(source: Source, convert: Convert) -> Iterator[Record]:
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
        yield convert(source, source.split, row, value)


def read_sources(config: IngestConfig, convert: Convert) -> Iterator[tuple[Source, Record]]:
    """Every record of every source, in the order of source, path and row."""
    for source in config.sources:
        if source.dataset is not None:
            for record in read_dataset(source, convert):
                yield source, record
            continue
        root, files = files_of(source)
        for i, path in enumerate(files):
            for record in read_file(source, relative_name(path, root), path, convert):
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
    contents = {tuple(stamp) for source in before for stamp in _stamps(source).values()}
    for source, current in zip(config.sources, now, strict=True):
        if current in before:
            continue
        if source.dataset is not None:
            records: Iterable[Record] = read_dataset(source, from_mapping)
        else:
            root, files = files_of(source)
            stamps = _stamps(current)
            names = {relative_name(path, root): path for path in files}
            new = {name: path for name, path in names.items() if tuple(stamps[name]) not in contents}
            records = (
                record for name, path in new.items() for record in read_file(source, name, path, from_mapping)
            )
        yield from (
            record.text for record in records if (record.text or "").strip() and record.text is not None
        )
