"""Archives of the web, as crawlers write them (WARC, ISO 28500): pages (WARC), or the text of pages (WET)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastwarc.warc import ArchiveIterator, WarcRecordType

from tasks.text.html import BadPage, decoded_page, text_of_page
from tasks.text.records import TOO_LARGE, Reading, Record, kept_record, open_file, reading_faults
from tasks.text.sources import Kind, Source

_KEPT = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
_TORN = "the archive ends in the middle of it"
_PAGES = ("text/html", "application/xhtml+xml")


def read_archive(source: Source, where: str, path: Path, kind: Kind, limit: int) -> Iterator[Record]:
    """A document for each page or text of an archive; what was fetched besides, and errors of servers, is named.

    The URL is what the document calls itself.
    """
    reading = Reading(where, path)
    raw, content = open_file(path, kind.compression)
    with raw, content:
        try:
            # Decompressed here: the library ends at a cut-off member as if the file ended there.
            last: Record | None = None
            for found in ArchiveIterator(content, record_types=_KEPT, auto_decode="all", stream_detect=False):
                if last is not None:
                    yield last
                reading.row += 1
                size = int(found.headers.get("Content-Length") or 0)
                reading.read = found.stream_pos + size
                last = kept_record(_record(source, where, reading.row, found, limit), size, limit)
            if last is not None:
                yield last if _ends(path, kind) else Record(where, reading.row, error=_TORN, size=last.size)
        except reading_faults() as error:
            yield reading.broken(error, raw)


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
    encoded = (
        found.is_http
        and found.http_headers
        and any(name in found.http_headers for name in ("Transfer-Encoding", "Content-Encoding"))
    )
    if not encoded and len(content) < declared:
        return Record(where, row, error=_TORN)
    try:
        text = text_of_page(content, source.extractor) if kind in _PAGES else decoded_page(content)
    except BadPage as error:
        return Record(where, row, error=str(error))
    return Record(where, row, text, url, {"url": url, "date": found.headers.get("WARC-Date")})
