"""why: the fate of one document, stage by stage."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flows.runs.record import Run
from model.errors import InputError
from model.tokens import open_tokens
from tasks.engine.store import Store
from tasks.tables import read_column, read_json_lines, read_table
from tasks.text.document_shards import ERRORS, SKIPPED
from tasks.text.documents import DOCUMENTS
from tasks.text.selection import DROPPED, SELECTION
from tasks.text.verdicts import VERDICTS


@dataclass(frozen=True)
class Verdict:
    """What one stage said of the document."""

    stage: str
    outcome: str
    detail: str


def _ids(shard: Path) -> list[str]:
    return read_column(shard / DOCUMENTS, "id")


def _locate(shards: tuple[Path, ...], identifier: str) -> tuple[int, int]:
    """Position of the shard and row of a document that shards of documents hold."""
    for position, shard in enumerate(shards):
        ids = _ids(shard)
        if identifier in ids:
            return position, ids.index(identifier)
    raise AssertionError(f"{identifier} is in none of the shards")


def _resolve_id(shards: tuple[Path, ...], name: str) -> str:
    """The id that `name` is, or that of the document that calls itself so, or of which it is a unique part.

    Raises:
        InputError: if no id or several ids fit.
    """
    ids = [identifier for shard in shards for identifier in _ids(shard)]
    if name in ids:
        return name
    own = [own for shard in shards for own in read_column(shard / DOCUMENTS, "own_id")]
    named = [identifier for identifier, other in zip(ids, own, strict=True) if other == name]
    if len(named) == 1:
        return named[0]
    if named:
        raise InputError(
            f"{len(named)} documents call themselves {name!r}, among them {', '.join(named[:3])}: give one of them"
        )
    fitting = [identifier for identifier in ids if name in identifier]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        examples = ", ".join(fitting[:3])
        raise InputError(f"{name!r} is part of {len(fitting)} ids, among them {examples}: give one of them")
    near = get_close_matches(name, ids, 3, 0.4)
    hint = f"; near are {', '.join(near)}" if near else ""
    raise InputError(f"no document of this run has the id {name!r}{hint}")


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


def _shards(run: Run, store: Store, stage: str) -> tuple[Path, ...] | None:
    """The shards of a stage of a run; also of one that failed after its shards were built; None if it did not come to them."""
    if stage in run.record["stages"]:
        return run.stored(store, stage).shard_paths
    claimed = run.record["claimed"].get(stage, {"shards": [None]})
    found = [key and store.find_whole("shards", claimed["stage"], key) for key in claimed["shards"]]
    return tuple(shard.out for shard in found if shard) if found and all(found) else None


def why(run: Run, store: Store, name: str) -> list[Verdict]:
    """Every verdict on a document, in the order of the stages; of a run that failed, as far as it came.

    Raises:
        InputError: if the document or a result that tells of it is not there.
    """
    read = run.node_with_role("read") or "ingest"
    stored = run.stored(store, read)
    shards = stored.shard_paths
    try:
        identifier = _resolve_id(shards, name)
    except InputError:
        not_read = _not_read(read, stored.out, name)
        if not not_read:
            raise
        return not_read
    position, row = _locate(shards, identifier)
    record = _row(shards[position], DOCUMENTS, row)
    size = len(record["text"].encode())
    verdicts = [Verdict(read, "read", f"{identifier}, {size:,} bytes, shard {position}, row {row}")]

    def shards_of(stage: str) -> tuple[Path, ...]:
        found = _shards(run, store, stage)
        if found is None:
            raise _NotKnown(stage)
        return found

    try:
        _later_verdicts(run, store, read, shards_of, (position, row), record, verdicts)
    except _NotKnown as unknown:
        verdicts.append(Verdict(str(unknown), "not known", f"the run did not come to it: it is {run.status}"))
    return verdicts


class _NotKnown(Exception):
    """The run did not come to this stage."""


def _later_verdicts(
    run: Run,
    store: Store,
    read: str,
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
    if "clean" in run.record["stages"] or read == "ingest":
        cleaned = shards_of("clean")[position]
        verdict = _row(cleaned, VERDICTS, row)
        if not verdict["kept"]:
            verdicts.append(Verdict("clean", "dropped", _measured(verdict)))
            return
        _, row = _locate((cleaned,), identifier)
        after = _row(cleaned, DOCUMENTS, row)["text"]
        change = (
            "unchanged" if after == record["text"] else f"text changed, now {len(after.encode()):,} bytes"
        )
        verdicts.append(Verdict("clean", "kept", change))

    default = "deduplicate" if read == "ingest" else f"deduplicate_{read.removeprefix('read_')}"
    for stage in (run.node_with_role("deduplicate") or default, "decontaminate"):
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
