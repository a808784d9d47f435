"""Mailboxes: a document for each message, its subject and what it says; who wrote to whom is left out."""

import email
import email.policy
import mailbox
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from tasks.text.html import BadPage, text_of_page
from tasks.text.records import TOO_LARGE, Record, kept_record
from tasks.text.sources import Source


def _parsed(content: Any) -> EmailMessage:
    message = email.message_from_binary_file(content, policy=email.policy.default)
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


def _record(source: Source, where: str, row: int | None, content: Any, limit: int) -> Record:
    start = content.tell()
    whole = content.read(limit + 1)
    if len(whole) > limit:
        return Record(where, row, error=TOO_LARGE, size=len(whole))
    content.seek(start)
    try:
        message = _parsed(content)
        body = message.get_body(("plain", "html"))
        said = body.get_content() if body else ""
        if body and body.get_content_type() == "text/html":
            said = text_of_page(str(said).encode(), source.extractor)
        subject, date = str(message.get("Subject", "")), str(message.get("Date", ""))
    except (BadPage, LookupError, ValueError, TypeError, AttributeError, KeyError) as error:
        return Record(
            where, row, error=f"no message that can be read ({type(error).__name__})", size=len(whole)
        )
    text = "\n\n".join(part for part in (subject, str(said).strip()) if part)
    own_id = str(message.get("Message-ID", "")).strip() or None
    return kept_record(Record(where, row, text, own_id, {"date": date}), len(whole), limit)
