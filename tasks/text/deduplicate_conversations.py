"""deduplicate_conversations: conversations that say the same, and the one of each that stays."""

import json
from pathlib import Path
from typing import Any

from tasks.engine.stage import Artifact, Metrics, stage
from tasks.tables import read_table, write_table
from tasks.text.documents import DOCUMENTS, document_digest, text_digest
from tasks.text.verdicts import VERDICTS, VERDICTS_SCHEMA, dropped, kept


def _said(metadata: str) -> int:
    """Digest of who says what, without case and white space."""
    values = json.loads(metadata)
    turns = [message for name in ("messages", "chosen", "rejected") for message in values.get(name, ())]
    return text_digest(
        json.dumps([(turn["role"], " ".join(turn["content"].split()).casefold()) for turn in turns])
    )


@stage(libraries=("pyarrow",), role="deduplicate")
def deduplicate_conversations(documents: Artifact, out: Path) -> Metrics:
    """Write shards/NNNNN/verdicts.parquet; of equal ones that with the smallest digest of id and text stays.

    Conversations are equal if they are so without regard to case and white space. Near-duplicates
    stay: questions of one form about different things are what a model learns the form from.
    """
    survivors: dict[int, tuple[int, str]] = {}
    tables = [
        read_table(shard / DOCUMENTS, ["id", "text", "metadata"]).to_pylist() for shard in documents.shards
    ]
    for rows in tables:
        for row in rows:
            row["said"] = _said(row["metadata"])
            candidate = (document_digest(row["id"], row["text"]), row["id"])
            survivors[row["said"]] = min(survivors.get(row["said"], candidate), candidate)
    removed = 0
    for position, rows in enumerate(tables):
        verdicts: list[dict[str, Any]] = []
        for row in rows:
            _, survivor = survivors[row["said"]]
            if survivor == row["id"]:
                verdicts.append(kept())
            else:
                removed += 1
                verdicts.append(
                    dropped("deduplicate_conversations", "duplicate", f"says the same as {survivor}")
                )
        write_table(out / "shards" / f"{position:05d}" / VERDICTS, verdicts, VERDICTS_SCHEMA)
    return {"documents": sum(map(len, tables)), "removed": removed}
