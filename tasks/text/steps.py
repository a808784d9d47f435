"""datatrove steps of ours: read a shard with row numbers, record what each filter drops, write what is kept."""

import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.formatters.base import BaseFormatter

from tasks.tables import read_column, read_table, write_table
from tasks.text.documents import DOCUMENTS, DOCUMENTS_SCHEMA
from tasks.text.verdicts import VERDICTS, VERDICTS_SCHEMA, dropped, kept

_ROW = "scratchlm_row"


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
            kept = {name: record[name] for name in ("source", "own_id", "metadata")}
            yield Document(text=record["text"], id=record["id"], metadata={_ROW: row, **kept})


_LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(
    rf"(?<![A-Za-z0-9_-])(?=[A-Za-z0-9_]){_LOCAL}{{1,64}}(?:\.{_LOCAL}{{1,64}}){{0,8}}@(?:{_LABEL}\.){{1,8}}{_LABEL}"
)
"""An address (RFC 5322, section 3.4.1) within the lengths of RFC 5321, section 4.5.3: so a match takes bounded time."""


class ReplaceEmails(BaseFormatter):
    """Replaces e-mail addresses, in time linear in the text."""

    name = "📞 e-mail"

    def __init__(self, replacement: str) -> None:
        super().__init__()
        self.replacement = replacement

    def format(self, text: str) -> str:
        """The text with the replacement in place of every address."""
        return _EMAIL.sub(lambda _: self.replacement, text) if "@" in text else text


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


class TimeLimit(PipelineStep):
    """Another step, which drops the documents that it cannot be done with in time."""

    type, name = "⏱ - LIMIT", "time"

    def __init__(self, step: Any, recorder: "Recorder", seconds: float) -> None:
        super().__init__()
        self.step, self.recorder, self.seconds = step, recorder, seconds

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """What the step makes of each document."""
        for document in data:
            try:
                with _alarm(self.seconds):
                    made = list(self.step.run([document], rank, world_size))
            except _TooSlow:
                document.metadata["filter_reason"] = f"takes longer than {self.seconds:g} seconds"
                self.recorder.write(document)
                continue
            yield from made


class DropEmpty(PipelineStep):
    """Drops documents in which nothing but white space is left."""

    type, name = "🔻 - FILTER", "empty"

    def __init__(self, recorder: "Recorder") -> None:
        super().__init__()
        self.recorder = recorder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents that have text."""
        for document in data:
            if document.text.strip():
                yield document
            else:
                document.metadata["filter_reason"] = "no text"
                self.recorder.write(document)


class Recorder:
    """The exclusion writer of one filter: notes row and reason instead of writing the text again."""

    def __init__(self, step: str, dropped: dict[int, dict[str, Any]]) -> None:
        self.step, self.dropped = step, dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def write(self, document: Document, rank: int = 0, **_: Any) -> None:
        """Note that this step drops the document."""
        row = document.metadata[_ROW]
        if row in self.dropped:
            raise ValueError(
                f"row {row} was dropped twice, by {self.dropped[row]['step']} and by {self.step}"
            )
        reason = document.metadata.get("filter_reason") or self.step
        self.dropped[row] = dropped(self.step, reason, _size(document.text))


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
            records.append(
                {
                    "id": document.id,
                    "text": document.text,
                    **{name: document.metadata[name] for name in ("source", "own_id", "metadata")},
                }
            )
        texts = read_column(self.source / DOCUMENTS, "text")
        came, gone = set(rows), set(self.dropped)
        wrong = sorted((came & gone) | (set(range(len(texts))) ^ (came | gone)))
        if wrong or len(came) != len(rows):
            raise ValueError(f"rows {wrong[:10]} of the shard were neither kept nor dropped exactly once")
        write_table(self.out / DOCUMENTS, records, DOCUMENTS_SCHEMA)
        verdicts = [self.dropped.get(row) or kept() for row in range(len(texts))]
        write_table(self.out / VERDICTS, verdicts, VERDICTS_SCHEMA)
        reasons = Counter(f"{verdict['step']}: {verdict['reason']}" for verdict in self.dropped.values())
        self.metrics = {
            "documents": len(texts),
            "kept": len(records),
            "bytes": sum(len(text.encode()) for text in texts),
            "kept_bytes": sum(len(record["text"].encode()) for record in records),
            "dropped": dict(sorted(reasons.items())),
        }
        yield from ()
