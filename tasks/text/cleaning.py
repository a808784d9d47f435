"""Cleaning a shard: some documents at a time take the steps of their profile together."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from model.errors import InputError
from tasks.characters import MOST_CHARACTERS
from tasks.engine.stage import Metrics
from tasks.tables import arrow_schema, read_batches, write_table, write_tables
from tasks.text.alarms import TooSlow, alarm
from tasks.text.documents import DOCUMENTS, DOCUMENTS_SCHEMA
from tasks.text.judging import Documents, Fault, Filter, Mender
from tasks.text.languages import LANGUAGES, LANGUAGES_SCHEMA
from tasks.text.plug_ins import DatatroveFilter
from tasks.text.verdicts import VERDICTS, VERDICTS_SCHEMA, dropped, kept

if TYPE_CHECKING:
    from tasks.text.clean import CleanConfig

Steps = Sequence[tuple[str, Filter | Mender]]
Verdict = dict[str, Any]


_Found = TypeVar("_Found")


def _within(
    seconds: float, step: Callable[[Documents], list[_Found]], documents: Documents
) -> list[_Found | type[TooSlow]]:
    """What a step finds of each document, or that it takes too long for it.

    Documents take a step together as long as all of them take less time than one may; else half of them do.
    """
    try:
        with alarm(seconds):
            return list(step(documents))
    except TooSlow:
        if len(documents) == 1:
            return [TooSlow]
    middle = len(documents) // 2
    halves = range(middle), range(middle, len(documents))
    return [found for half in halves for found in _within(seconds, step, documents.take(half))]


def _size(text: str) -> str:
    lines = text.strip().splitlines()
    return f"{len(text.split()):,} words, {len(text):,} characters, {len(lines):,} lines ({len(set(lines)):,} different)"


class Cleaning:
    """Takes the steps with documents: each mends their texts, or drops some of them.

    Args:
        steps: in order, each with its name.
        max_seconds: longest time that a step may take for a document.
    """

    def __init__(self, steps: Steps, max_seconds: float) -> None:
        self.steps, self.max_seconds = steps, max_seconds

    def __call__(self, documents: Documents) -> tuple[dict[int, str], dict[int, Verdict]]:
        """What becomes of the documents: texts of those that stay, and verdicts on those that do not, by row."""
        rows = list(range(len(documents)))
        gone: dict[int, Verdict] = {}
        for name, step in self.steps:
            if not rows:
                break
            if isinstance(step, Mender | DatatroveFilter):
                documents, faults = self._mend(name, step.each, documents)
            else:
                faults = self._judge(name, step, documents)
            staying = [at for at, fault in enumerate(faults) if fault is None]
            if len(staying) < len(rows):
                gone.update((rows[at], fault) for at, fault in enumerate(faults) if fault)
                rows, documents = [rows[at] for at in staying], documents.take(staying)
        return dict(zip(rows, documents.texts, strict=True)), gone

    def _mend(
        self, name: str, step: Callable[[Documents], list[Any]], documents: Documents
    ) -> tuple[Documents, list[Verdict | None]]:
        found = _within(self.max_seconds, step, documents)
        _check_gives(name, found, len(documents), str | Fault, "a text")
        texts = [
            after if isinstance(after, str) else before
            for before, after in zip(documents.texts, found, strict=True)
        ]
        faults: list[Verdict | None] = []
        for after, text in zip(found, texts, strict=True):
            if isinstance(after, Fault):
                faults.append(_verdict(name, text, after))
            elif after is TooSlow:
                faults.append(self._too_slow(name, text))
            else:
                # A step may leave nothing of a text.
                faults.append(None if text.strip() else dropped("empty", "no text", _size(text)))
        # What was computed of the texts is still right where none of them changed.
        return documents if texts == documents.texts else documents.replaced(texts), faults

    def _judge(self, name: str, step: Filter, documents: Documents) -> list[Verdict | None]:
        found = _within(self.max_seconds, step.judge, documents)
        _check_gives(name, found, len(documents), Fault | None, "a Fault or None")
        return [
            None
            if fault is None
            else _verdict(name, text, fault)
            if isinstance(fault, Fault)
            else self._too_slow(name, text)
            for fault, text in zip(found, documents.texts, strict=True)
        ]

    def _too_slow(self, name: str, text: str) -> Verdict:
        reason = f"takes longer than {self.max_seconds:g} seconds"
        return dropped(name, reason, _size(text), "clean.max_document_seconds")


def _check_gives(name: str, found: list[Any], n_documents: int, kind: Any, told: str) -> None:
    """Refuse what a step gives if it is not one for each document, and of its kind.

    Raises:
        InputError: naming the step.
    """
    if len(found) != n_documents:
        raise InputError(
            f"clean.{name} gives {len(found)} results for {n_documents} documents: it must give one for each"
        )
    bad = next((one for one in found if one is not TooSlow and not isinstance(one, kind)), TooSlow)
    if bad is not TooSlow:
        raise InputError(f"clean.{name} gives {bad!r} for a document: it must give {told}")


def _verdict(name: str, text: str, fault: Fault) -> Verdict:
    field = f"clean.{name}.{fault.field}" if fault.field else f"clean.{name}"
    return dropped(name, fault.reason, _size(text), field, fault.value, fault.limit)


def clean_shard(config: "CleanConfig", source: Path, out: Path, repeated: Path | None = None) -> Metrics:
    """Clean the documents of a shard; writes documents.parquet, verdicts.parquet and languages.parquet, returns how many and why."""
    cleaning: dict[str, Cleaning] = {}
    verdicts: list[Verdict] = []
    languages: list[tuple[str, float]] = []
    kept_tables: list[pa.RecordBatch] = []
    n_bytes, kept_bytes = 0, 0
    text_at = list(DOCUMENTS_SCHEMA).index("text")
    for batch in read_batches(source / DOCUMENTS, "text", MOST_CHARACTERS):
        staying: dict[int, str] = {}
        gone: dict[int, Verdict] = {}
        whole = Documents(batch)
        profiles = batch.column("profile").to_pylist()
        for profile in dict.fromkeys(profiles):
            rows = [row for row, own in enumerate(profiles) if own == profile]
            if profile not in cleaning:
                cleaning[profile] = Cleaning(config.steps(profile, repeated), config.max_document_seconds)
            own_staying, own_gone = cleaning[profile](whole if len(rows) == len(whole) else whole.take(rows))
            staying.update((rows[at], text) for at, text in own_staying.items())
            gone.update((rows[at], verdict) for at, verdict in own_gone.items())
        # Source code is in no language; what it would be taken for says nothing.
        languages += [
            ("", 0.0) if profile == "code" else found
            for profile, found in zip(profiles, whole.languages, strict=True)
        ]
        verdicts += [gone.get(row) or kept() for row in range(len(whole))]
        rows = sorted(staying)
        texts = pa.array([staying[row] for row in rows], pa.large_string())
        own = batch.take(pa.array(rows, pa.int64()))
        kept_tables.append(own.set_column(text_at, arrow_schema(DOCUMENTS_SCHEMA).field("text"), texts))
        n_bytes += sum(len(text.encode()) for text in whole.texts)
        kept_bytes += sum(len(staying[row].encode()) for row in rows)
    write_tables(out / DOCUMENTS, kept_tables, DOCUMENTS_SCHEMA)
    write_table(out / VERDICTS, verdicts, VERDICTS_SCHEMA)
    named = [{"language": language, "probability": probability} for language, probability in languages]
    write_table(out / LANGUAGES, named, LANGUAGES_SCHEMA)
    kept_languages = Counter(
        language or "unknown"
        for verdict, (language, _) in zip(verdicts, languages, strict=True)
        if verdict["kept"]
    )
    faults = [verdict for verdict in verdicts if not verdict["kept"]]
    return {
        "documents": len(verdicts),
        "kept": len(verdicts) - len(faults),
        "bytes": n_bytes,
        "kept_bytes": kept_bytes,
        "kept_by_language": dict(kept_languages.most_common()),
        "dropped": dict(sorted(Counter(verdict["reason"] for verdict in faults).items())),
        "dropped_by_field": dict(
            sorted(Counter(verdict["field"] for verdict in faults if verdict["field"]).items())
        ),
    }
