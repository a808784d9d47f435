"""Reading documents: files of text and HTML, files of rows, and datasets; what cannot be read becomes a record too."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from model.errors import InputError, StageFailed
from model.files import sha256_of_file
from tasks.dataset_folders import check_dataset_folder
from tasks.engine.keys import canonical
from tasks.engine.sources import SourceDigests
from tasks.tables import sorted_json
from tasks.text.cut import LARGE_BYTES, cut_text, has_pages
from tasks.text.documents import text_digest
from tasks.text.listing import hub_commit, root_of
from tasks.text.office import LIBRARIES, MEND, BadFile, text_of_file, version_of
from tasks.text.pieces import (
    Lines,
    RowGroups,
    TextPiece,
    dataset_print,
    sha256_of_lines,
    sha256_of_row_groups,
)
from tasks.text.records import (
    EMPTY_FILE,
    TOO_LARGE,
    UTF_16_MARKS,
    Convert,
    Reading,
    Record,
    from_mapping,
    kept_record,
    open_file,
    read_whole,
    reading_faults,
)
from tasks.text.remote import fetched
from tasks.text.row_files import (
    read_arrow_rows,
    read_json_rows,
    read_lines,
    read_parquet_rows,
    read_table_rows,
)
from tasks.text.sources import IngestConfig, Kind, Source, is_remote, kind_of, path_of_name


def _decode(where: str, row: int | None, whole: bytes, size: int, was: str | None = None) -> Record:
    """A document of text: UTF-8, or UTF-16 with a byte order mark.

    Args:
        was: encoding of the file, if it is another one.
    """
    encoding = "utf-16" if whole[:2] in UTF_16_MARKS else "utf-8-sig"
    try:
        return Record(where, row, whole.decode(encoding), size=size)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        fault = f"not {was.upper()}" if was else f"not {name} at byte {error.start}"
        return Record(where, row, error=fault, size=size)


def _read_text(source: Source, where: str, path: Path, kind: Kind, limit: int) -> Iterator[Record]:
    """The documents of a file of text: itself, or what it is cut into."""
    reading, how = Reading(where, path), source.cut
    raw, content = open_file(path, kind.compression, encoding=source.encoding)
    with raw, content:
        try:
            beginning = content.read(LARGE_BYTES + 1)
            if beginning[:2] in UTF_16_MARKS:
                how = "none"
            if how == "auto":
                is_large = len(beginning) > LARGE_BYTES
                how = "none" if not is_large else "pages" if has_pages(beginning) else "paragraphs"
            if how == "none":
                whole = beginning + content.read(max(0, limit + 1 - len(beginning)))
                if len(whole) > limit:
                    yield Record(where, None, error=TOO_LARGE, size=reading.size)
                else:
                    yield _decode(where, None, whole, len(whole), source.encoding)
                return
            for piece in cut_text(_Rest(beginning, content), how, source.cut_bytes, limit):
                reading.row, reading.read = reading.row + 1, reading.read + len(piece)
                if piece.strip():
                    yield _decode(where, reading.row, piece, len(piece), source.encoding)
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


def _read_page(source: Source, where: str, path: Path, kind: Kind, limit: int) -> Record:
    from tasks.text.html import BadPage, text_of_page

    whole = read_whole(path, kind.compression, limit)
    if whole is None:
        return Record(where, None, error=TOO_LARGE, size=path.stat().st_size)
    try:
        return kept_record(Record(where, None, text_of_page(whole, source.extractor)), len(whole), limit)
    except BadPage as error:
        return Record(where, None, error=str(error), size=len(whole))


def _read_office(where: str, path: Path, kind: Kind, limit: int) -> Iterator[Record]:
    """A document for a file, or for each page of one with a text of more than 256 kB."""
    size = path.stat().st_size
    try:
        text = text_of_file(kind.suffix, path, limit)
    except BadFile as error:
        yield Record(where, None, error=str(error), size=size)
        return
    if len(text.encode("utf-8", "surrogatepass")) <= LARGE_BYTES:
        yield kept_record(Record(where, None, text.replace("\f", "\n\n")), size, limit)
        return
    pages = text.split("\f")
    for row, page in enumerate(pages):
        if page.strip():
            yield kept_record(Record(where, row, page), size // len(pages), limit)


def read_file(
    source: Source,
    where: str,
    path: Path,
    convert: Convert,
    limit: int,
    lines: Lines | None = None,
    row_groups: RowGroups | None = None,
) -> Iterator[Record]:
    """Every record of a file; what cannot be read becomes a record with an error.

    Args:
        limit: largest line or document, in bytes.
        lines, row_groups: the part of a file of lines, or of a Parquet file, that is read; all of it if None.
    """
    kind = kind_of(path) or Kind("lines", ".jsonl", "")
    try:
        if kind.of != "parquet" and not path.stat().st_size:
            yield Record(where, None, error=EMPTY_FILE, rows=0)
            return
        match kind.of:
            case "parquet":
                yield from read_parquet_rows(source, where, path, convert, limit, row_groups)
            case "text" | "html" | "archive" | "office" | "mailbox" | "message" if (
                convert is not from_mapping
            ):
                yield Record(where, None, error="text, and no rows", is_other=True)
            case "text":
                yield from _read_text(source, where, path, kind, limit)
            case "html":
                yield _read_page(source, where, path, kind, limit)
            case "archive":
                from tasks.text.archives import read_archive

                yield from read_archive(source, where, path, kind, limit)
            case "office":
                yield from _read_office(where, path, kind, limit)
            case "mailbox":
                from tasks.text.mail import read_mailbox

                yield from read_mailbox(source, where, path, limit)
            case "message":
                from tasks.text.mail import read_message

                yield read_message(source, where, path, limit)
            case "arrow":
                yield from read_arrow_rows(source, where, path, convert, limit)
            case "table":
                yield from read_table_rows(source, where, path, kind, convert, limit)
            case "json":
                yield from read_json_rows(source, where, path, kind, convert, limit)
            case _:
                yield from read_lines(source, where, path, kind, convert, limit, lines)
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


def _values_of(source: Source, rows: Iterable[Any]) -> Iterator[Any]:
    """The rows of a dataset, as many as are asked for.

    Raises:
        InputError: if one is none.
    """
    n_read = 0
    try:
        for value in islice(rows, source.max_rows):
            yield value
            n_read += 1
    except ValueError as error:  # pyarrow's are ones, too; what the network says is none, and is tried again
        sentence = " ".join(str(error).split())[:200]
        raise InputError(
            f"ingest.sources: the dataset of {source.name!r} ({source.path}, split {source.split!r}) cannot be read after row "
            f"{n_read}: {sentence}. Of files that are given as a path what is bad is left out, and named"
        ) from error


def read_dataset(source: Source, convert: Convert, limit: int) -> Iterator[Record]:
    """Every record of a Hugging Face dataset.

    Raises:
        InputError: if it cannot be opened, or a row is none.
    """
    try:
        rows = _open_dataset(source)
    except (ValueError, KeyError, OSError) as error:
        sentence = " ".join(str(error).split())[:200]
        raise InputError(
            f"ingest.sources: the dataset of {source.name!r} ({source.path}, split {source.split!r}) "
            f"cannot be opened: {sentence}"
        ) from error
    for row, value in enumerate(_values_of(source, rows)):
        size = sum(len(str(item)) for item in value.values()) if isinstance(value, dict) else 0
        yield kept_record(convert(source, source.split, row, value), size, limit)


@contextmanager
def _here(source: Source, piece: TextPiece, name: str) -> Iterator[Path]:
    """A file of a piece, on this computer."""
    if is_remote(source.path):
        ((_, size, version),) = [stamp for stamp in piece.files if stamp[0] == name]
        with fetched(source.path, name, size, version) as path:
            yield path
        return
    yield path_of_name(root_of(source), name)


def _check_unchanged(source: Source, piece: TextPiece, path: Path, stamp: tuple[str, int, str]) -> None:
    """Refuse a piece that is not what was listed: its key speaks of that.

    Raises:
        StageFailed: if it changed meanwhile.
    """
    name, size, sha256 = stamp
    try:
        if piece.lines:
            now = piece.lines.size, sha256_of_lines(path, piece.lines)
        elif piece.row_groups:
            now = piece.row_groups.size, sha256_of_row_groups(path, piece.row_groups)
        else:
            now = path.stat().st_size, sha256_of_file(path)
    except OSError as error:
        now = -1, f"unreadable: {type(error).__name__}"
    if now != (size, sha256):
        raise StageFailed(
            f"its source changed while it was read ({source.name}/{name}): run the same command again",
            retryable=True,
        )


def _check_converters(piece: TextPiece) -> None:
    """Refuse to read where other libraries convert than the piece, and so its key, names: on a node of a cluster, say."""
    listed = dict(told.rsplit(" ", 1) for told in piece.converters)
    others = [
        f"{name} {own or 'is missing'} instead of {version}"
        for name, version in listed.items()
        if str(own := version_of(name)) != version
    ]
    if set(listed) & set(LIBRARIES.values()) and version_of("pebble") is None:
        others.append("pebble is missing")
    if others:
        raise StageFailed(
            f"files of {piece.source_name} would be converted by other libraries than were listed ({', '.join(others)}): install "
            f"the same on every computer, {MEND} with constraints.txt"
        )


def read_piece(config: IngestConfig, piece: TextPiece, convert: Convert) -> Iterator[tuple[Source, Record]]:
    """Every record of a piece, in the order of path and row.

    Raises:
        StageFailed: if its source is not what was listed any more, or other libraries would convert it.
    """
    _check_converters(piece)
    source = next(source for source in config.sources if source.name == piece.source_name)
    limit = config.max_document_bytes
    if piece.dataset is not None:
        for record in read_dataset(source, convert, limit):
            yield source, record
        if canonical(dataset_print(source, SourceDigests(rehash=True))) != piece.dataset:
            raise StageFailed(
                f"its source changed while it was read ({source.name}): run the same command again",
                retryable=True,
            )
    for stamp in piece.files:
        with _here(source, piece, stamp[0]) as path:
            for record in read_file(source, stamp[0], path, convert, limit, piece.lines, piece.row_groups):
                if source.max_rows is not None and (record.row or 0) >= source.max_rows:
                    break
                yield source, record
            if not is_remote(source.path):
                _check_unchanged(source, piece, path, stamp)


def unread_texts(config: IngestConfig, before: list[Any], now: list[Any]) -> Iterator[str]:
    """The texts of the documents in the files that were changed or added, as far as pieces tell.

    Args:
        before, now: pieces of the sources, as `list_pieces` gives them. A dataset of another commit is read as a whole.
    """
    former = {sorted_json(values) for values in before}
    known = {tuple(stamp) for piece in before for _, *stamp in piece.get("files", ())}
    for values in now:
        if sorted_json(values) in former:
            continue
        piece = TextPiece.model_validate(values)
        new = tuple(stamp for stamp in piece.files if stamp[1:] not in known)
        for source, record in read_piece(config, piece.model_copy(update={"files": new}), from_mapping):
            if record.text is None or not record.text.strip():
                continue
            if text_digest(record.text) < source.share * 2**64:
                yield record.text
