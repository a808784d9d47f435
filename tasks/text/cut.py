"""Cutting a large file of text into documents, with memory for one of them."""

import hashlib
from collections.abc import Iterator
from typing import Protocol

LARGE_BYTES = 256_000
"""A file of more than this is cut where the recipe leaves it open."""
_LINE_BYTES = 1 << 16
_MARK = b"<|endoftext|>"


class Lines(Protocol):
    """What is read line by line."""

    def readline(self, size: int, /) -> bytes:
        """The next line, or a part of it of this size."""


def _is_mark(line: bytes) -> bool:
    return line.strip() == _MARK


def has_pages(beginning: bytes) -> bool:
    """Whether the beginning of a file has ends of pages: form feeds, or lines of <|endoftext|>."""
    return b"\f" in beginning or any(map(_is_mark, beginning.splitlines()))


class _Paragraph:
    """The lines since the last blank one: their size, and a hash of them."""

    def __init__(self) -> None:
        self.n_bytes, self.hash = 0, hashlib.blake2b(digest_size=8)

    def add(self, line: bytes) -> None:
        self.n_bytes += len(line)
        self.hash.update(line)

    def may_end(self, size: int, cut_bytes: int) -> bool:
        """Whether a document of this size may end after it.

        The paragraph itself decides, so text that is added in one place changes the documents next to it only.
        """
        value = int.from_bytes(self.hash.digest(), "big")
        by_chance = value * cut_bytes < (self.n_bytes << 64) * 4 // 3
        return size >= 3 * cut_bytes or (size >= cut_bytes // 4 and by_chance)


def _last_character(piece: bytearray) -> int:
    """Where the last UTF-8 character of a piece begins, which may go on after it."""
    end = len(piece) - 1
    while end > 1 and piece[end] & 0xC0 == 0x80:
        end -= 1
    return max(1, end)


def _end_of(piece: bytearray) -> int:
    """Where a piece that is large enough may end: after a line, else after a word, else before its last character."""
    return len(piece) if piece.endswith(b"\n") else piece.rfind(b" ") + 1 or _last_character(piece)


def cut_text(file: Lines, how: str, cut_bytes: int, limit: int) -> Iterator[bytes]:
    """The documents of a file, one after the other; together they are the file, but for marks between pages.

    Args:
        how: pages, headings, paragraphs or lines.
        cut_bytes: typical size of a document, of paragraphs and lines.
        limit: largest document, in bytes; a page that is larger is cut, too.
    """
    piece, paragraph = bytearray(), _Paragraph()
    by_size = how in ("paragraphs", "lines")
    largest = min(limit, 8 * cut_bytes) if by_size else limit
    in_code = False
    while line := file.readline(min(_LINE_BYTES, limit)):
        while piece and len(piece) + len(line) > limit:
            end = _end_of(piece)
            yield bytes(piece[:end])
            piece = piece[end:]
        in_code ^= line.lstrip().startswith((b"```", b"~~~"))
        if how == "pages" and (_is_mark(line) or b"\f" in line):
            first, *others = [b"", b""] if _is_mark(line) else line.split(b"\f")
            yield bytes(piece + first)
            yield from others[:-1]
            piece = bytearray(others[-1])
            continue
        if how == "headings" and not in_code and line.startswith((b"# ", b"## ")) and piece.strip():
            yield bytes(piece)
            piece = bytearray()
        piece += line
        is_blank = not line.strip()
        if not is_blank:
            paragraph.add(line)
        is_end = by_size and (is_blank or how == "lines") and paragraph.n_bytes > 0
        if is_end and paragraph.may_end(len(piece), cut_bytes):
            yield bytes(piece)
            piece = bytearray()
        elif len(piece) >= largest:
            # Text without blank lines, or without lines, ends where it must.
            end = _end_of(piece)
            yield bytes(piece[:end])
            piece = piece[end:]
        if is_end:
            paragraph = _Paragraph()
    yield bytes(piece)
