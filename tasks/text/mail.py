"""Mailboxes: a document for each message, its subject and what it says; who wrote to whom is left out."""

import email
import email.policy
import io
import mailbox
import re
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from tasks.text.html import decoded_page, text_of_page
from tasks.text.records import TOO_LARGE, Record, kept_record
from tasks.text.sources import Source


def _parsed(content: bytes) -> EmailMessage:
    message = email.message_from_binary_file(io.BytesIO(content), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def read_mailbox(source: Source, where: str, path: Path, limit: int) -> Iterator[Record]:
    """Every message of a mailbox (RFC 4155)."""
    box = mailbox.mbox(str(path), create=False)
    for row, key in enumerate(box.keys()):
        with box.get_file(key) as content:
            yield _record(source, where, row, content, limit)
    if not len(box):
        yield Record(where, None, error="no message", rows=None, size=path.stat().st_size)


def read_message(source: Source, where: str, path: Path, limit: int) -> Record:
    """The message of a file."""
    with path.open("rb") as content:
        return _record(source, where, None, content, limit)


_DEEPEST = 20


def _decoded(part: EmailMessage) -> str:
    """The text of a part; where its encoding is not told, or told wrongly, that which its bytes look like."""
    content, charset = part.get_payload(decode=True), part.get_content_charset()
    assert isinstance(content, bytes)
    if charset not in (None, "us-ascii"):
        try:
            return content.decode(charset)
        except (LookupError, UnicodeDecodeError):
            return decoded_page(content)
    return decoded_page(content)


def _said(part: Any, extractor: str, depth: int = 0) -> str:
    """What a message, or a part of one, says: of alternatives the plain one if it says anything; nothing of attachments."""
    if depth > _DEEPEST:
        raise ValueError("messages inside each other")
    kind = part.get_content_type()
    if part.is_multipart():
        parts = part.get_payload()
        if kind == "multipart/alternative":
            parts = sorted(parts, key=lambda one: one.get_content_type() != "text/plain")
            return next(filter(None, (_said(one, extractor, depth + 1) for one in parts)), "")
        said = [_said(one, extractor, depth + 1) for one in parts]
        return "\n\n".join(filter(None, [_subject(part, depth), *said]))
    if part.get_content_disposition() == "attachment" or kind not in ("text/plain", "text/html"):
        return ""
    text = _decoded(part)
    text = text_of_page(text.encode("utf-8", "replace"), extractor) if kind == "text/html" else text
    return "\n\n".join(filter(None, [_subject(part, depth), text.strip()]))


def _subject(part: Any, depth: int) -> str:
    """The subject of a message in another one."""
    return str(part.get("Subject", "")) if depth else ""


def _record(source: Source, where: str, row: int | None, content: Any, limit: int) -> Record:
    whole = content.read(limit + 1)
    if len(whole) > limit:
        return Record(where, row, error=TOO_LARGE, size=len(whole))
    try:
        message = _parsed(whole)
        subject, date = str(message.get("Subject", "")), str(message.get("Date", ""))
        said = _said(message, source.extractor)
        own_id = _own_id(whole)
    except Exception as error:  # the parser of messages has many: a message costs itself, whatever is in it
        return Record(
            where, row, error=f"no message that can be read ({type(error).__name__})", size=len(whole)
        )
    text = "\n\n".join(part for part in (subject, said) if part)
    return kept_record(Record(where, row, text, own_id, {"date": date}), len(whole), limit)


def _own_id(message: bytes) -> str | None:
    """The Message-ID as it is written: to parse a strange one fails."""
    head = message.partition(b"\n\n")[0].partition(b"\r\n\r\n")[0]
    found = re.search(rb"^message-id:[ \t]*([^\r\n]{1,998})", head, re.I | re.M)
    return (found[1].decode("ascii", "replace").strip() or None) if found else None
