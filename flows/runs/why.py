"""why: the fate of one document, stage by stage."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flows.runs.fates import Fates, deduplicate_stage, read_stage, shards_of
from flows.runs.record import Run
from model.errors import InputError
from model.tokens import open_tokens
from tasks.engine.store import Store
from tasks.tables import read_json_lines, read_table
from tasks.text.document_shards import ERRORS, SKIPPED
from tasks.text.documents import DOCUMENTS
from tasks.text.selection import DROPPED, SELECTION
from tasks.text.verdicts import VERDICTS

_LEAST_TEXT, _WORDS, _ALIKE_SHARE, _PROBES = 12, 5, 0.5, 12
"""Characters from which a name may be a piece of text; words in a run that is compared; share of the runs that is alike;
runs that are looked for as they stand."""


@dataclass(frozen=True)
class Verdict:
    """What one stage said of the document."""

    stage: str
    outcome: str
    detail: str


def _locate(fates: Fates, table: str, identifier: str) -> tuple[int, int]:
    """Position of the shard and row of a document in a table of documents."""
    (found,) = fates.rows(f"SELECT shard, row FROM {table} WHERE id = ?", identifier)
    return found["shard"], found["row"]


def _names(fates: Fates, condition: str, name: str, most: int = 4) -> list[str]:
    return [row["id"] for row in fates.rows(f"SELECT id FROM read WHERE {condition} LIMIT {most}", name)]


def _resolve_id(fates: Fates, name: str) -> str:
    """The id that `name` is, or that of the document that calls itself so, of which it is a unique part, or that has such text.

    Raises:
        InputError: if no id or several ids fit.
    """
    for condition, sentence in (
        ("id = ?", ""),
        ("own_id = ?", "documents call themselves"),
        ("contains(id, ?)", "documents have in their ids"),
        *([("contains(text, ?)", "documents have in their text")] if len(name) >= _LEAST_TEXT else []),
    ):
        fitting = _names(fates, condition, name)
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            count = fates.rows(f"SELECT count(*) AS n FROM read WHERE {condition}", name)[0]["n"]
            examples = ", ".join(fitting[:3])
            raise InputError(f"{count} {sentence} {name!r}, among them {examples}: give one of them")
    if len(name) >= _LEAST_TEXT and (alike := _alike(fates, name)):
        return alike
    near = fates.rows("SELECT id FROM read ORDER BY jaro_winkler_similarity(id, ?) DESC, id LIMIT 3", name)
    hint = f"; near are {', '.join(row['id'] for row in near)}" if near else ""
    raise InputError(f"no document of this run has the id {name!r}, or such text{hint}")


def _alike(fates: Fates, text: str) -> str | None:
    """The document that has most of the runs of five words of a text, if it has half of them.

    Those that are looked at have one of some runs of four words as they stand.
    """
    from tasks.ngrams import WordHasher, ngram_hashes

    hasher = WordHasher()
    wanted = np.unique(ngram_hashes(hasher(text), _WORDS))
    words = text.split()
    starts = np.linspace(0, max(0, len(words) - 4), _PROBES).astype(int)
    pieces = sorted({" ".join(words[start : start + 4]) for start in starts.tolist()})
    if not len(wanted):
        return None
    condition = " OR ".join(["contains(text, ?)"] * len(pieces))
    rows = fates.rows(f"SELECT id, text FROM read WHERE {condition} LIMIT 10000", *pieces)
    shares = [
        (len(np.intersect1d(ngram_hashes(hasher(row["text"]), _WORDS), wanted)) / len(wanted), row["id"])
        for row in rows
    ]
    share, identifier = max(shares, default=(0.0, ""))
    return identifier if share >= _ALIKE_SHARE else None


def _row(shard: Path, name: str, row: int) -> dict[str, Any]:
    return read_table(shard / name).slice(row, 1).to_pylist()[0]


def _measured(verdict: dict[str, Any]) -> str:
    """Why cleaning drops a document: what it measured, what is allowed, and which field says so."""
    decided = ""
    if verdict["value"] is not None:
        decided = f" ({verdict['value']:.4g}, the limit is {verdict['limit']:.4g})"
    field = f", {verdict['field']}" if verdict["field"] else ""
    return f"{verdict['reason']}{decided}{field}; {verdict['detail']}"


def _not_read(read: str, out: Path, name: str) -> list[Verdict]:
    """What could not be read, or was left out, and has this name, or a part of it."""
    rows = [("unusable", row["error"], row) for row in read_json_lines(out / ERRORS)]
    rows += [("left out", row["why"], row) for row in read_json_lines(out / SKIPPED)]
    named = [(outcome, f"{row['source']}/{row['where']}", why) for outcome, why, row in rows]
    return [Verdict(read, outcome, f"{where}: {why}") for outcome, where, why in named if name in where]


def why(run: Run, store: Store, name: str) -> list[Verdict]:
    """Every verdict on a document, in the order of the stages; of a run that failed, as far as it came.

    Raises:
        InputError: if the document or a result that tells of it is not there.
    """
    read = read_stage(run)
    stored = run.stored(store, read)
    shards, fates = stored.shard_paths, Fates(run, store)
    try:
        identifier = _resolve_id(fates, name)
    except InputError:
        not_read = _not_read(read, stored.out, name)
        if not not_read:
            raise
        return not_read
    position, row = _locate(fates, "read", identifier)
    record = _row(shards[position], DOCUMENTS, row)
    size = len(record["text"].encode())
    verdicts = [Verdict(read, "read", f"{identifier}, {size:,} bytes, shard {position}, row {row}")]

    def shards_of_stage(stage: str) -> tuple[Path, ...]:
        found = shards_of(run, store, stage)
        if found is None:
            raise _NotKnown(stage)
        return found

    try:
        _later_verdicts(run, store, fates, shards_of_stage, (position, row), record, verdicts)
    except _NotKnown as unknown:
        verdicts.append(Verdict(str(unknown), "not known", f"the run did not come to it: it is {run.status}"))
    return verdicts


class _NotKnown(Exception):
    """The run did not come to this stage."""


def _later_verdicts(
    run: Run,
    store: Store,
    fates: Fates,
    shards_of: Callable[[str], tuple[Path, ...]],
    place: tuple[int, int],
    record: dict[str, Any],
    verdicts: list[Verdict],
) -> None:
    """Add the verdicts of the stages after reading on the document at a shard and row, as far as the run came.

    Raises:
        _NotKnown: at the first stage to which it did not come.
    """
    position, row = place
    identifier = record["id"]
    # Cleaning writes the kept documents again, so from there on rows count those.
    if "clean" in run.record["stages"] or read_stage(run) == "ingest":
        cleaned = shards_of("clean")[position]
        verdict = _row(cleaned, VERDICTS, row)
        if not verdict["kept"]:
            verdicts.append(Verdict("clean", "dropped", _measured(verdict)))
            return
        _, row = _locate(fates, "kept_text", identifier)
        after = _row(cleaned, DOCUMENTS, row)["text"]
        change = (
            "unchanged" if after == record["text"] else f"text changed, now {len(after.encode()):,} bytes"
        )
        verdicts.append(Verdict("clean", "kept", change))

    for stage in (deduplicate_stage(run), "decontaminate"):
        verdict = _row(shards_of(stage)[position], VERDICTS, row)
        verdicts.append(Verdict(stage, "kept" if verdict["kept"] else "dropped", verdict["detail"] or ""))
    selection = _row(shards_of("split")[position], SELECTION, row)
    verdicts.append(Verdict("split", selection["side"], selection["reason"] or ""))
    tokenize = run.node_with_role("tokenize")
    if selection["side"] != DROPPED and tokenize:
        verdicts.append(_tokens(run, store, tokenize, position, selection["side"], identifier))


def _tokens(run: Run, store: Store, tokenize: str, position: int, side: str, identifier: str) -> Verdict:
    """Where the tokens of a document are; of a preference pair those of the chosen side."""
    documents = open_tokens(run.stored(store, tokenize).shard_paths[position] / f"{side}.arrow").documents
    ids = documents.column("id").to_pylist()
    index = next((ids.index(name) for name in (identifier, f"{identifier}#chosen") if name in ids), None)
    if index is None:
        return Verdict(tokenize, "dropped", "longer than the context")
    ends = documents.column("end").to_pylist()
    start = ends[index - 1] if index else 0
    detail = (
        f"{ends[index] - start:,} tokens, {start:,} to {ends[index]:,} of {side}.arrow of shard {position}"
    )
    return Verdict(tokenize, side, detail)
