"""Pieces: what sources consist of, in parts that are read one by one, each with a fingerprint of its content.

A piece is a group of small files, a whole file, a range of the lines of a large file of JSON lines, a range of the row
groups of a large Parquet file, or a dataset. A file that is added changes its own piece, and no other.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from model.base_config import Config
from tasks.engine.keys import canonical, digest
from tasks.engine.sources import Facts, SourceDigests, walk
from tasks.engine.stage import Pieces
from tasks.text.content_cuts import Cuts
from tasks.text.listing import Entry, Listing, hub_commit, list_source, text_bytes_in, typical_shard_bytes
from tasks.text.office import LIBRARIES, version_of
from tasks.text.sources import IngestConfig, Kind, Source, is_remote, kind_of

_RANGE_SHARDS = 4
"""Typical shards of text in a range of lines or row groups."""


class Lines(Config):
    """A range of the lines of a file."""

    offset: int = Field(description="Where it begins, in bytes.")
    size: int = Field(description="Its length, in bytes.")
    first_row: int = Field(description="Lines of the file before it.")


class RowGroups(Config):
    """A range of the row groups of a Parquet file."""

    first: int = Field(description="The first of them.")
    end: int = Field(description="The one after the last of them.")
    first_row: int = Field(description="Rows of the file before it.")
    offset: int = Field(description="Where it begins, in bytes.")
    size: int = Field(description="Its length, in bytes.")


class TextPiece(Config):
    """One piece of a source."""

    source: dict[str, Any] = Field(
        description="The source as the recipe describes it, without where it lies."
    )
    url: str | None = Field(
        None, description="Where it lies, if not here: a version says what changed in one place, and no more."
    )
    shard_bytes: int = Field(description="Typical size of a shard, in bytes of text.")
    files: tuple[tuple[str, int, str], ...] = Field(
        (),
        description="Path below the source, size in bytes, and SHA-256 or version of each file or of the range.",
    )
    lines: Lines | None = Field(None, description="The range, if it is one of lines.")
    row_groups: RowGroups | None = Field(None, description="The range, if it is one of row groups.")
    dataset: Any = Field(None, description="What the dataset is, if it is one.")
    converters: tuple[str, ...] = Field(
        (),
        description="Libraries that some kinds of files need to be read, with their versions, if it has any of them.",
    )

    @property
    def source_name(self) -> str:
        """Name of the source."""
        return str(self.source["name"])


def _hash_of_bytes(path: Path, offset: int, size: int) -> Any:
    total, left = hashlib.sha256(), size
    with path.open("rb") as file:
        file.seek(offset)
        while left and (block := file.read(min(left, 1 << 20))):
            total.update(block)
            left -= len(block)
    return total


def sha256_of_lines(path: Path, lines: Lines) -> str:
    """SHA-256 of a range of lines."""
    return _hash_of_bytes(path, lines.offset, lines.size).hexdigest()


def sha256_of_row_groups(path: Path, part: RowGroups) -> str:
    """SHA-256 of the bytes of row groups, and of the columns as the file describes them.

    Raises:
        OSError: if the file has no footer that can be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    total = _hash_of_bytes(path, part.offset, part.size)
    try:
        total.update(pq.read_schema(path).to_string(show_schema_metadata=False).encode())
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
    return total.hexdigest()


def _ranges_of_lines(path: Path, range_bytes: int) -> str:
    """Offset, size, lines before and SHA-256 of each range, as JSON; a range ends with the line that is in it at its bound.

    Lines that are added at the end of a file change its last range only.
    """
    ranges: list[tuple[int, int, int, str]] = []
    offset = row = 0
    with path.open("rb") as file:
        while True:
            first_row, size, total = row, 0, hashlib.sha256()
            while size < range_bytes and (block := file.read(min(1 << 20, range_bytes - size))):
                total.update(block)
                size, row, ended = size + len(block), row + block.count(b"\n"), block.endswith(b"\n")
            if not size:
                return json.dumps(ranges)
            while not ended and (block := file.readline(1 << 20)):
                total.update(block)
                size, ended = size + len(block), block.endswith(b"\n")
                row += ended
            ranges.append((offset, size, first_row, total.hexdigest()))
            offset += size


def _ranges_of_row_groups(path: Path, range_bytes: int) -> str:
    """Ranges of row groups, and SHA-256 of each, as JSON; nothing if the footer cannot be read.

    Row groups that are added at the end change the last range only.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowException:
        return "[]"
    ranges: list[tuple[dict[str, int], str]] = []
    first = row = first_row = size = 0
    begin, end = None, 0
    for group in range(metadata.num_row_groups):
        footer = metadata.row_group(group)
        for number in range(footer.num_columns):
            column = footer.column(number)
            pages = [column.data_page_offset]
            if column.has_dictionary_page and column.dictionary_page_offset is not None:
                pages.append(column.dictionary_page_offset)
            begin = min(pages) if begin is None else min(begin, *pages)
            end = max(end, min(pages) + column.total_compressed_size)
        row, size = row + footer.num_rows, size + footer.total_byte_size
        if begin is not None and (size >= range_bytes or group == metadata.num_row_groups - 1):
            part = RowGroups(first=first, end=group + 1, first_row=first_row, offset=begin, size=end - begin)
            ranges.append((part.model_dump(), sha256_of_row_groups(path, part)))
            first, first_row, size, begin, end = group + 1, row, 0, None, 0
    return json.dumps(ranges)


def _stamp(entry: Entry, facts: Facts) -> tuple[str, int, str]:
    if entry.path is None:
        return entry.name, entry.size, entry.version
    return entry.name, *facts.size_and_sha256(entry.path)


def _ranges(entry: Entry, path: Path, kind: Kind, range_bytes: int, facts: Facts) -> Iterator[dict[str, Any]]:
    """The ranges of a large file; none if it is read as a whole."""
    if kind.of == "lines" and not kind.compression:
        told = facts.fact(path, f"lines {range_bytes}", lambda path: _ranges_of_lines(path, range_bytes))
        for offset, size, first_row, sha256 in json.loads(told):
            lines = Lines(offset=offset, size=size, first_row=first_row)
            yield {"files": ((entry.name, size, sha256),), "lines": lines}
    elif kind.of == "parquet":
        # The description of the columns is in the hash, in the words of this version.
        name = f"row groups {range_bytes} pyarrow {version_of('pyarrow')}"
        told = facts.fact(path, name, lambda path: _ranges_of_row_groups(path, range_bytes))
        for values, sha256 in json.loads(told):
            part = RowGroups.model_validate(values)
            yield {"files": ((entry.name, part.size, sha256),), "row_groups": part}


def _large(entry: Entry, range_bytes: int, facts: Facts) -> Iterator[dict[str, Any]]:
    """The pieces of a large file, without what all pieces have."""
    kind = kind_of(Path(entry.name))
    if entry.path is not None and kind and entry.size > range_bytes:
        try:
            found = list(_ranges(entry, entry.path, kind, range_bytes, facts))
        except OSError:
            found = []  # reading it will fail in the same way, and be counted and named there
        if found:
            yield from found
            return
    yield {"files": (_stamp(entry, facts),)}


def _pieces_of_files(
    source: Source, listing: Listing, shard_bytes: int, facts: Facts
) -> Iterator[dict[str, Any]]:
    """Small files in groups that end where a hash of their names says so, large files in ranges."""
    group: list[tuple[str, int, str]] = []
    cuts = Cuts(shard_bytes)
    for entry in listing.entries:
        size = text_bytes_in(entry)
        is_large = size >= shard_bytes
        if group and (is_large or cuts.ends_before(size)):
            yield {"files": tuple(group)}
            group = []
            cuts.begin()
        if is_large:
            # The lines of another encoding than UTF-8 may not end where a byte looks like it.
            whole = {"files": (_stamp(entry, facts),)}
            yield from [whole] if source.encoding else _large(entry, _RANGE_SHARDS * shard_bytes, facts)
            continue
        group.append(_stamp(entry, facts))
        name = hashlib.blake2b(entry.name.encode(), digest_size=8).digest()
        if cuts.ends_after(int.from_bytes(name, "big"), size):
            yield {"files": tuple(group)}
            group = []
            cuts.begin()
    if group:
        yield {"files": tuple(group)}


def _converters(source: Source, values: dict[str, Any]) -> tuple[str, ...]:
    """The libraries, with their versions, that decide what becomes of the files of a piece and of few others."""
    kinds = {kind for name, *_ in values.get("files", ()) if (kind := kind_of(Path(name)))}
    used = {LIBRARIES[kind.suffix] for kind in kinds if kind.of == "office"}
    of = {kind.of for kind in kinds}
    used |= {"fastwarc"} if "archive" in of else set()
    if source.extractor == "trafilatura" and of & {"html", "archive", "mailbox", "message"}:
        used |= {"trafilatura", "lxml"}
    return tuple(f"{name} {version_of(name)}" for name in sorted(used))


def dataset_print(source: Source, digests: SourceDigests) -> Any:
    """What a dataset holds: its files by relative path, size and SHA-256, or its commit on the hub."""
    if source.dataset_folder:
        return digests.files(source.dataset_folder, walk(source.dataset_folder))
    return {"name": source.dataset, "commit": hub_commit(str(source.dataset))}


def list_pieces(config: IngestConfig, digests: SourceDigests) -> Pieces:
    """The pieces of all sources, in the order of source, path and row, and by source how much they are.

    Raises:
        InputError: if a source is missing or empty.
    """
    listings = [list_source(source) for source in config.sources]
    shard_bytes = typical_shard_bytes(config, listings)
    each: list[Any] = []
    about: dict[str, Any] = {}
    with digests.remembering() as facts:
        for source, listing in zip(config.sources, listings, strict=True):
            shared = {"source": canonical(source), "shard_bytes": shard_bytes}
            if is_remote(source.path):
                shared["url"] = source.path
            own = (
                iter([{"dataset": dataset_print(source, digests)}])
                if source.dataset is not None
                else _pieces_of_files(source, listing, shard_bytes, facts)
            )
            pieces = [
                TextPiece.model_validate(
                    {**shared, **values, "converters": _converters(source, values)}
                ).model_dump(mode="json", exclude_none=True, exclude_defaults=True)
                for values in own
            ]
            each += pieces
            # What is left out is told too, so that a file of another kind is not left out in silence.
            about[source.name] = {
                "files": len(listing.entries),
                "bytes": sum(max(0, entry.size) for entry in listing.entries),
                "skipped": dict(sorted(Counter(why for _, why in listing.skipped).items())),
                "digest": digest([pieces, listing.skipped]),
            }
    return Pieces(each, about)


def stamps_of(pieces: list[Any]) -> dict[str, list[Any]]:
    """Size and fingerprint of every file of pieces, by source and path, and by offset where it is read in ranges."""
    stamps: dict[str, list[Any]] = {}
    for piece in pieces:
        for name, *stamp in piece.get("files", ()):
            stamps.setdefault(f"{piece['source']['name']}/{name}", []).append(stamp)
        if "dataset" in piece:
            stamps[piece["source"]["name"]] = [piece["dataset"]]
    return stamps
