"""Reading documents: files of text and HTML, files of rows, and datasets; what cannot be read becomes a record too."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from model.errors import InputError
from tasks.dataset_folders import check_dataset_folder
from tasks.engine.progress import progress
from tasks.text.cut import LARGE_BYTES, cut_text, has_pages
from tasks.text.records import (
    EMPTY_FILE,
    TOO_LARGE,
    Convert,
    Reading,
    Record,
    from_mapping,
    kept_record,
    open_file,
    read_whole,
    reading_faults,
)
from tasks.text.row_files import read_json_rows, read_lines, read_parquet_rows, read_table_rows
from tasks.text.sources import IngestConfig, Kind, Source, files_of, hub_commit, kind_of


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
    reading, how = Reading(where, path), source.cut
    raw, content = open_file(path, kind.compression)
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
                    yield Record(where, None, error=TOO_LARGE, size=reading.size)
                else:
                    yield _decode(where, None, whole, len(whole))
                return
            for piece in cut_text(_Rest(beginning, content), how, source.cut_bytes, limit):
                reading.row, reading.read = reading.row + 1, reading.read + len(piece)
                if piece.strip():
                    yield _decode(where, reading.row, piece, len(piece))
        except reading_faults() as error:
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

    whole = read_whole(path, kind.compression, limit)
    if whole is None:
        return Record(where, None, error=TOO_LARGE, size=path.stat().st_size)
    try:
        return kept_record(Record(where, None, text_of_page(whole)), len(whole), limit)
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
            yield Record(where, None, error=EMPTY_FILE, rows=0)
            return
        match kind.of:
            case "parquet":
                yield from read_parquet_rows(source, where, path, convert, limit)
            case "text" | "html" if convert is not from_mapping:
                yield Record(where, None, error="text, and no rows", is_other=True)
            case "text":
                yield from _read_text(source, where, path, kind, limit)
            case "html":
                yield _read_page(where, path, kind, limit)
            case "table":
                yield from read_table_rows(source, where, path, kind, convert, limit)
            case "json":
                yield from read_json_rows(source, where, path, kind, convert, limit)
            case _:
                yield from read_lines(source, where, path, kind, convert, limit)
    except reading_faults() as error:
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
        yield kept_record(convert(source, source.split, row, value), size, limit)


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
