"""why: the fate of one document, stage by stage."""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flows.runs import Run
from tasks.documents.files import DOCUMENTS, SELECTION, VERDICTS, read_table
from tasks.errors import InputError
from tasks.store.store import Store


@dataclass(frozen=True)
class Verdict:
    """What one stage said of the document."""

    stage: str
    outcome: str
    detail: str


def _find(shards: tuple[Path, ...], identifier: str) -> tuple[int, int] | None:
    """Position of the shard and row of a document in shards of documents."""
    for position, shard in enumerate(shards):
        ids = read_table(shard / DOCUMENTS, ["id"]).column("id").to_pylist()
        if identifier in ids:
            return position, ids.index(identifier)
    return None


def _resolve_id(shards: tuple[Path, ...], name: str) -> str:
    """The id that `name` is, or is a unique part of.

    Raises:
        InputError: if no id or several ids fit.
    """
    ids = [identifier for shard in shards for identifier in read_table(shard / DOCUMENTS, ["id"]).column("id").to_pylist()]
    if name in ids:
        return name
    found = [identifier for identifier in ids if name in identifier]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{name!r} is part of {len(found)} ids, among them {', '.join(found[:3])}: give one of them")
    near = get_close_matches(name, ids, 3, 0.4)
    hint = f"; near are {', '.join(near)}" if near else ""
    raise InputError(f"no document of this run has the id {name!r}{hint}")


def _row(shard: Path, name: str, row: int) -> dict[str, Any]:
    return read_table(shard / name).slice(row, 1).to_pylist()[0]


def why(run: Run, store: Store, name: str) -> list[Verdict]:
    """Every verdict on a document, in the order of the stages.

    Raises:
        InputError: if the document or a result that tells of it is not there.
    """
    stages = run.record["stages"]
    tuned = "read_conversations" in stages
    read, deduplicate, tokenize = (
        ("read_conversations", "deduplicate_conversations", "tokenize_conversations")
        if tuned
        else ("ingest", "deduplicate", "tokenize")
    )
    stored = run.stored(store, read)
    ingested = stored.shard_paths
    try:
        identifier = _resolve_id(ingested, name)
    except InputError:
        unusable = [json.loads(line) for line in (stored.out / "errors.jsonl").read_text().splitlines()]
        found = [error for error in unusable if name in f"{error['source']}/{error['where']}"]
        if not found:
            raise
        return [Verdict(read, "unusable", f"{error['source']}/{error['where']}: {error['error']}") for error in found]
    place = _find(ingested, identifier)
    assert place is not None
    position, row = place
    record = _row(ingested[position], DOCUMENTS, row)
    size = len(record["text"].encode())
    verdicts = [Verdict(read, "read", f"{identifier}, {size:,} bytes, shard {position}, row {row}")]

    if not tuned:
        verdict = _row(run.stored(store, "clean").shard_paths[position], VERDICTS, row)
        if not verdict["kept"]:
            return [*verdicts, Verdict("clean", "dropped", f"{verdict['step']}: {verdict['reason']}; {verdict['detail']}")]
        cleaned = run.stored(store, "clean").shard_paths
        place = _find((cleaned[position],), identifier)
        assert place is not None
        row = place[1]
        after = _row(cleaned[position], DOCUMENTS, row)["text"]
        change = "unchanged" if after == record["text"] else f"text changed, now {len(after.encode()):,} bytes"
        verdicts.append(Verdict("clean", "kept", change))
    for stage in (deduplicate, "decontaminate"):
        verdict = _row(run.stored(store, stage).shard_paths[position], VERDICTS, row)
        detail = verdict["detail"] or ""
        verdicts.append(Verdict(stage, "kept" if verdict["kept"] else "dropped", detail))
    selection = _row(run.stored(store, "split").shard_paths[position], SELECTION, row)
    verdicts.append(Verdict("split", selection["side"], selection["reason"] or ""))
    if selection["side"] != "dropped" and tokenize in stages:
        verdicts.append(_tokens(run, store, tokenize, position, selection["side"], identifier))
    return verdicts


def _tokens(run: Run, store: Store, tokenize: str, position: int, side: str, identifier: str) -> Verdict:
    from model.tokens import open_tokens

    documents = open_tokens(run.stored(store, tokenize).shard_paths[position] / f"{side}.arrow").documents
    ids = documents.column("id").to_pylist()
    if identifier not in ids and f"{identifier}#chosen" not in ids:
        return Verdict(tokenize, "dropped", "longer than the context")
    index = ids.index(identifier if identifier in ids else f"{identifier}#chosen")
    ends = documents.column("end").to_pylist()
    start = ends[index - 1] if index else 0
    detail = f"{ends[index] - start:,} tokens, {start:,} to {ends[index]:,} of {side}.arrow of shard {position}"
    return Verdict(tokenize, side, detail)
