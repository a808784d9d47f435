"""What is read: a document, or the reason why there is none; and the file that it comes from."""

import bz2
import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from tasks.tables import sorted_json
from tasks.text.fields import field_of
from tasks.text.sources import Source

TOO_LARGE, EMPTY_FILE = "larger than ingest.max_document_bytes", "an empty file"


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


_ID_FIELD = "id"
"""Taken for the id of a row where the recipe does not say."""

UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class Unkept(str):
    """Stands for a value of a row that has no form in Python, such as bytes that are not UTF-8 in a column of text."""

    __slots__ = ()


TEXT_FIELDS = ("text", "content", "body", "document", "article", "passage")
"""What the field with the text is called, where the recipe does not say; of several the first if it is `text`, else none."""


def text_field_of(source: Source, names: Iterable[str]) -> str | None:
    """Which of these fields holds the text of a row; None if that cannot be told."""
    if source.text_field is not None:
        known = {source.text_field, source.text_field.partition(".")[0]}
        return source.text_field if known & set(names) else None
    there = [name for name in TEXT_FIELDS if name in names]
    return there[0] if len(there) == 1 or "text" in there else None


def _without(row: dict[str, Any], name: str) -> dict[str, Any]:
    """A row without a field, or without a field of a field."""
    first, _, rest = name.partition(".")
    if name in row or not rest:
        return {other: value for other, value in row.items() if other != name}
    inner = row.get(first)
    return {**row, first: _without(inner, rest)} if isinstance(inner, dict) else row


def no_text(source: Source, names: Iterable[str]) -> str:
    """The sentence on a row or table whose text is in no field that is known."""
    told = ", ".join(repr(str(name)[:40]) for name in list(names)[:12]) or "none"
    wanted = "no field" if source.text_field is None else f"no field {source.text_field!r}"
    several = [name for name in TEXT_FIELDS if name in names]
    which = (
        f"{' or '.join(map(repr, several))}" if len(several) > 1 and not source.text_field else "which one"
    )
    return f"{wanted} with the text (its fields: {told}; say {which} in ingest.sources as text_field)"


def _is_unkept(row: dict[str, Any], name: str) -> bool:
    return isinstance(field_of(row, name), Unkept) or isinstance(row.get(name.partition(".")[0]), Unkept)


def from_mapping(source: Source, where: str, row: int, value: Any) -> Record:
    """The document of a row with fields."""
    if not isinstance(value, dict):
        return Record(where, row, error="not an object with fields")
    field = text_field_of(source, value)
    if field is None:
        return Record(where, row, error=no_text(source, value))
    wanted = [name for name in (field, source.id_field) if name]
    unkept = next((name for name in wanted if _is_unkept(value, name)), None)
    if unkept:
        return Record(where, row, error=f"field {unkept!r} has a value that cannot be read, or is not UTF-8")
    text = field_of(value, field)
    if not isinstance(text, str):
        return Record(where, row, error=f"field {field!r} is {type(text).__name__}, not text")
    own_id, metadata = field_of(value, source.id_field), _without(value, field)
    if isinstance(own_id, float) and own_id.is_integer() and abs(own_id) < 2**53:
        own_id = int(own_id)  # a column of whole numbers of which one is missing
    if isinstance(own_id, str | int) or own_id is None:
        metadata = _without(metadata, source.id_field)
    elif source.id_field == _ID_FIELD:
        own_id = None  # nobody asked for it: it stays among the metadata
    else:
        sentence = f"field {source.id_field!r} is {type(own_id).__name__}, not a name or number: set id_field to another one"
        return Record(where, row, error=sentence)
    identifier = None if own_id is None else str(own_id)
    taken = field if source.text_field is None and field != "text" else None
    return Record(where, row, text, identifier, metadata, text_field=taken)


def kept_record(record: Record, size: int, limit: int) -> Record:
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
        return fault(TOO_LARGE)
    return replace(record, size=size)


class _Range(io.RawIOBase):
    """A range of a file, as a file."""

    def __init__(self, raw: BinaryIO, offset: int, size: int) -> None:
        self.raw, self.left = raw, size
        raw.seek(offset)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the range goes."""
        block = self.raw.read(min(len(buffer), self.left))
        buffer[: len(block)] = block
        self.left -= len(block)
        return len(block)


class _Bz2(io.RawIOBase):
    """What streams of bzip2 hold. Python's own reader ends without a word where a later stream is damaged."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.decompressor, self.rest = raw, bz2.BZ2Decompressor(), b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or a part of it."""
        while True:
            if self.decompressor.eof:
                self.rest = self.decompressor.unused_data or self.raw.read(1 << 16)
                if not self.rest:
                    return 0
                self.decompressor = bz2.BZ2Decompressor()
            elif self.decompressor.needs_input and not self.rest:
                self.rest = self.raw.read(1 << 16)
                if not self.rest:
                    raise EOFError("the file ends in the middle of a stream")
            block = self.decompressor.decompress(self.rest, len(buffer))
            self.rest = b""
            if block:
                buffer[: len(block)] = block
                return len(block)


def _marked(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


_MARK = "scratchlm.mark"
codecs.register_error(_MARK, _marked)


class _AsUtf8(io.RawIOBase):
    """What a file in another encoding says, in UTF-8: so that it may be cut wherever UTF-8 may.

    What is not in that encoding becomes a byte that is not UTF-8: so it costs the row or the document in which it is, and no more.
    """

    def __init__(self, content: BinaryIO, encoding: str) -> None:
        self.content, self.decoder = content, codecs.getincrementaldecoder(encoding)(_MARK)
        self.ready, self.ended = b"", False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or a part of it."""
        while not self.ready and not self.ended:
            block = self.content.read(1 << 16)
            self.ended = not block
            self.ready = self.decoder.decode(block, final=self.ended).encode("utf-8", "surrogatepass")
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count


def open_file(
    path: Path, compression: str, section: tuple[int, int] | None = None, encoding: str | None = None
) -> tuple[BinaryIO, BinaryIO]:
    """A file, and a reader of what it holds, decompressed. An end in the middle of a compressed stream is an error.

    Args:
        section: offset and size in bytes of what is read of a file that is not compressed; all of it if None.
        encoding: of what it holds, which is then read as UTF-8; None if it is that.
    """
    raw, content = _open_decompressed(path, compression, section)
    return (raw, io.BufferedReader(_AsUtf8(content, encoding), 1 << 16)) if encoding else (raw, content)


def _open_decompressed(
    path: Path, compression: str, section: tuple[int, int] | None
) -> tuple[BinaryIO, BinaryIO]:
    import pyarrow as pa

    raw = path.open("rb")
    if section is not None:
        return raw, io.BufferedReader(_Range(raw, *section), 1 << 20)
    if compression == ".gz":
        return raw, gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if compression == ".bz2":
        return raw, io.BufferedReader(_Bz2(raw), 1 << 20)
    if compression == ".zst":
        # Of the readers at hand the one that reads several frames and minds a cut one. The last 8 KiB before a
        # fault are lost with it.
        return raw, io.BufferedReader(pa.input_stream(raw, compression="zstd"))
    return raw, raw


class Reading:
    """How far a file is read, so that it can be said what is lost with its rest."""

    def __init__(self, where: str, path: Path) -> None:
        self.where, self.size = where, path.stat().st_size
        self.row, self.read, self.is_range = -1, 0, False

    def broken(self, error: BaseException, raw: BinaryIO) -> Record:
        """The record of a fault in the middle."""
        rest = f" after row {self.row}" if self.row >= 0 else ""
        what = "not in its encoding" if isinstance(error, UnicodeError) else "unreadable"
        what = f"not {error.encoding.upper()}" if isinstance(error, UnicodeDecodeError) else what
        sentence = f"{what}{rest}: {type(error).__name__}"
        # What is left of a compressed file would have grown as what was read of it did.
        if self.is_range:
            lost = max(1, self.size - self.read)
            return Record(self.where, self.row + 1, error=sentence, size=lost, rows=None)
        consumed = max(1, raw.tell()) if not raw.closed else self.size
        lost = round(max(1, self.size - consumed) * max(1.0, self.read / consumed))
        return Record(self.where, self.row + 1, error=sentence, size=lost, rows=None)


def reading_faults() -> tuple[type[BaseException], ...]:
    import pyarrow as pa

    # Not MemoryError: what a computer has too little memory for, another one may read.
    return OSError, EOFError, zlib.error, UnicodeError, pa.ArrowException


def read_whole(path: Path, compression: str, limit: int, encoding: str | None = None) -> bytes | None:
    """The content of a file, decompressed; None if it is larger than the limit."""
    raw, content = open_file(path, compression, encoding=encoding)
    with raw, content:
        whole = content.read(limit + 1)
    return whole if len(whole) <= limit else None
