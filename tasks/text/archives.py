"""Archives of the web, as crawlers write them (WARC, ISO 28500): pages (WARC), or the text of pages (WET)."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from fastwarc.warc import ArchiveIterator, WarcRecordType

from tasks.text.html import BadPage, decoded_page, text_of_page
from tasks.text.records import TOO_LARGE, Reading, Record, kept_record, open_file, reading_faults
from tasks.text.sources import Kind, Source

_KEPT = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
_TORN = "the archive ends in the middle of it"
_NOTHING = "an archive in which no page is found"
_PAGES = ("text/html", "application/xhtml+xml")


def read_archive(source: Source, where: str, path: Path, kind: Kind, limit: int) -> Iterator[Record]:
    """A document for each page or text of an archive; what was fetched besides, and errors of servers, is named.

    The URL is what the document calls itself.
    """
    reading = Reading(where, path)
    raw, content = open_file(path, kind.compression)
    with raw, content:
        # Decompressed here: the library ends at a cut-off member as if the file ended there.
        stream = _UpToFault(content)
        last: Record | None = None
        try:
            for found in ArchiveIterator(cast("BinaryIO", stream), record_types=_KEPT, stream_detect=False):
                if last is not None:
                    yield last
                reading.row += 1
                told = found.headers.get("Content-Length") or ""
                size = int(told) if told.isdigit() else 0
                reading.read = found.stream_pos + size
                last = kept_record(_record(source, where, reading.row, found, limit), size, limit)
        except reading_faults() as error:
            stream.error = stream.error or error
        if last is not None:
            is_whole = stream.error is not None or _ends(path, kind)
            yield last if is_whole else Record(where, reading.row, error=_TORN, size=last.size)
        elif stream.error is None:
            yield Record(where, None, error=_NOTHING, is_other=True, rows=0)
        if stream.error is not None:
            yield reading.broken(stream.error, raw)


class _UpToFault:
    """A stream that ends where it cannot be read any more: what was read before is not lost with what comes behind."""

    def __init__(self, content: Any) -> None:
        self.content, self.position = content, 0
        self.error: BaseException | None = None

    def tell(self) -> int:
        """How many bytes were read."""
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Some bytes."""
        if self.error is not None:
            return b""
        try:
            block = bytes(self.content.read1(min(size, 1 << 14) if size > 0 else 1 << 14))
            self.position += len(block)
            return block
        except reading_faults() as error:
            self.error = error
            return b""


def _decoded(content: bytes, headers: dict[str, str], limit: int) -> bytes:
    """The body of an answer as a browser sees it (RFC 9110, section 8.4; RFC 9112, section 7.1), up to a limit and one byte.

    Raises:
        ValueError, zlib.error: if it is not what its headers say.
    """
    if "chunked" in headers.get("transfer-encoding", ""):
        content = b"".join(_chunks(content))
    for coding in reversed(
        [name.strip() for name in headers.get("content-encoding", "").split(",") if name.strip()]
    ):
        if coding in ("gzip", "x-gzip"):
            content = zlib.decompressobj(wbits=31).decompress(content, limit + 1)
        elif coding == "deflate":
            # As zlib (RFC 1950) says, or bare, as some servers understood it.
            bare = -15 if content[:1] and content[0] & 0x0F != 8 else 15
            content = zlib.decompressobj(wbits=bare).decompress(content, limit + 1)
        elif coding != "identity":
            raise ValueError(f"content encoding {coding[:20]}")
    return content


def _chunks(content: bytes) -> Iterator[bytes]:
    position = 0
    while True:
        end = content.index(b"\r\n", position)
        size = int(content[position:end].partition(b";")[0], 16)
        if not size:
            return
        if end + 2 + size > len(content):
            raise ValueError("chunks are missing")
        yield content[end + 2 : end + 2 + size]
        position = end + 4 + size


def _ends(path: Path, kind: Kind) -> bool:
    """Whether a file ends where a record does: with two line ends (section 4). Of compressed ones decompression tells."""
    if kind.compression:
        return True
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        return file.read() == b"\r\n\r\n"


def _record(source: Source, where: str, row: int, found: Any, limit: int) -> Record:
    url = found.headers.get("WARC-Target-URI")

    def other(why: str) -> Record:
        return Record(where, row, error=why, is_other=True)

    kind = (found.http_content_type or "").lower() if found.is_http else ""
    if found.record_type != WarcRecordType.conversion:
        status = found.http_headers.status_code if found.is_http and found.http_headers else 200
        kind = kind or (found.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        if status != 200:
            return other(f"an answer with HTTP status {status}")
        if kind not in _PAGES and not kind.startswith("text/plain"):
            return other(f"an answer of type {kind[:40] or 'unknown'}")
    declared = found.content_length
    content = found.reader.read(limit + 1)
    if len(content) > limit:
        return Record(where, row, error=TOO_LARGE)
    if len(content) < declared:
        return Record(where, row, error=_TORN)
    headers = (
        {name.lower(): value.lower() for name, value in (found.http_headers or {}).items()}
        if found.is_http
        else {}
    )
    try:
        content = _decoded(content, headers, limit)
    except (zlib.error, ValueError) as error:
        return Record(where, row, error=f"its content cannot be decoded ({error})")
    if len(content) > limit:
        return Record(where, row, error=TOO_LARGE)
    try:
        text = text_of_page(content, source.extractor) if kind in _PAGES else decoded_page(content)
    except BadPage as error:
        return Record(where, row, error=str(error))
    return Record(where, row, text, url, {"url": url, "date": found.headers.get("WARC-Date")})
