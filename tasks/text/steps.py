"""datatrove steps of ours: read a shard with row numbers, clean each document, write what is kept and what is not."""

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from tasks.tables import read_column, read_table, write_table
from tasks.text.documents import DOCUMENTS, DOCUMENTS_SCHEMA
from tasks.text.judges import Fault, Judge
from tasks.text.verdicts import VERDICTS, VERDICTS_SCHEMA, dropped, kept

_ROW = "scratchlm_row"
_COLUMNS = ("source", "profile", "own_id", "metadata")


def _size(text: str) -> str:
    lines = text.strip().splitlines()
    return f"{len(text.split()):,} words, {len(text):,} characters, {len(lines):,} lines ({len(set(lines)):,} different)"


class ReadShard(PipelineStep):
    """Yields every row of a documents file, with its number; skips none."""

    type, name = "📖 - READER", "shard"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents in the order of the file."""
        for row, record in enumerate(read_table(self.path / DOCUMENTS).to_pylist()):
            columns = {name: record[name] for name in _COLUMNS}
            yield Document(text=record["text"], id=record["id"], metadata={_ROW: row, **columns})


_LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(
    rf"(?<![A-Za-z0-9_])(?=[A-Za-z0-9_]){_LOCAL}{{1,64}}(?:\.{_LOCAL}{{1,64}}){{0,8}}@(?:{_LABEL}\.){{1,8}}{_LABEL}"
)
"""An address (RFC 5322, section 3.4.1) within the lengths of RFC 5321, section 4.5.3: so a match takes bounded time."""


def replace_emails(text: str, replacement: str) -> str:
    """The text with the replacement in place of every e-mail address, in time linear in the text."""
    return _EMAIL.sub(lambda _: replacement, text) if "@" in text else text


class _TooSlow(Exception):
    """A step took longer for a document than it may."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `_TooSlow` in the body after some seconds. In the main thread only, where every shard is built."""

    def ring(number: int, frame: object) -> None:
        raise _TooSlow

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


Mend = Callable[[str], str]
"""A text -> what it becomes."""


class Clean(PipelineStep):
    """Takes the steps of a document's profile with it: each mends its text, or drops it.

    Args:
        profiles: steps by profile, each with its name and what it does.
        max_seconds: longest time that a step may take for a document.

    Attributes:
        dropped: verdict by row of the documents that do not come through.
    """

    type, name = "🔻 - FILTER", "clean"

    def __init__(
        self, profiles: dict[str, list[tuple[str, Judge | None, Mend | None]]], max_seconds: float
    ) -> None:
        super().__init__()
        self.profiles, self.max_seconds = profiles, max_seconds
        self.dropped: dict[int, dict[str, Any]] = {}

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents that come through all steps."""
        for document in data:
            fault = self._clean(document)
            if fault is None:
                yield document
            else:
                self.dropped[document.metadata[_ROW]] = fault

    def _clean(self, document: Document) -> dict[str, Any] | None:
        """Mend a document; returns the verdict if it is to be dropped."""
        for step, judge, mend in self.profiles[document.metadata["profile"]]:
            fault: Fault | None = None
            try:
                with _alarm(self.max_seconds):
                    if mend:
                        document.text = mend(document.text)
                    if judge:
                        fault = judge(document.text)
            except _TooSlow:
                reason = f"takes longer than {self.max_seconds:g} seconds"
                return dropped(step, reason, _size(document.text), "clean.max_document_seconds")
            if fault:
                field = f"clean.{step}.{fault.field}" if fault.field else f"clean.{step}"
                return dropped(step, fault.reason, _size(document.text), field, fault.value, fault.limit)
            if not document.text.strip():
                # A step may leave nothing of a text.
                return dropped("empty", "no text", _size(document.text))
        return None


class WriteKept(PipelineStep):
    """Writes the documents that came through, and the verdict on every row of the input.

    Raises:
        ValueError: if kept and dropped rows are not exactly the rows of the input.
    """

    type, name = "💽 - WRITER", "shard"

    def __init__(self, source: Path, out: Path, dropped: dict[int, dict[str, Any]]) -> None:
        super().__init__()
        self.source, self.out, self.dropped = source, out, dropped
        self.metrics: dict[str, Any] = {}

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yields nothing."""
        rows: list[int] = []
        records: list[dict[str, Any]] = []
        for document in data:
            rows.append(document.metadata[_ROW])
            columns = {name: document.metadata[name] for name in _COLUMNS}
            records.append({"id": document.id, "text": document.text, **columns})
        texts = read_column(self.source / DOCUMENTS, "text")
        came, gone = set(rows), set(self.dropped)
        wrong = sorted((came & gone) | (set(range(len(texts))) ^ (came | gone)))
        if wrong or len(came) != len(rows):
            raise ValueError(f"rows {wrong[:10]} of the shard were neither kept nor dropped exactly once")
        write_table(self.out / DOCUMENTS, records, DOCUMENTS_SCHEMA)
        verdicts = [self.dropped.get(row) or kept() for row in range(len(texts))]
        write_table(self.out / VERDICTS, verdicts, VERDICTS_SCHEMA)
        by_reason = Counter(verdict["reason"] for verdict in self.dropped.values())
        by_field = Counter(verdict["field"] for verdict in self.dropped.values() if verdict["field"])
        self.metrics = {
            "documents": len(texts),
            "kept": len(records),
            "bytes": sum(len(text.encode()) for text in texts),
            "kept_bytes": sum(len(record["text"].encode()) for record in records),
            "dropped": dict(sorted(by_reason.items())),
            "dropped_by_field": dict(sorted(by_field.items())),
        }
        yield from ()
