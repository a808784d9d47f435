"""deduplicate_conversations: conversations that say the same, and the one of each that stays."""

import json
from pathlib import Path
from typing import Any

from model.base_config import Config
from tasks.documents.files import DOCUMENTS, VERDICTS, VERDICTS_SCHEMA, document_digest, read_table, text_digest, write_table
from tasks.stage import Artifact, Metrics, stage


class DeduplicateConversationsConfig(Config):
    """Nothing to choose: conversations are the same if they are so without regard to case and white space.

    Near-duplicates stay: questions of one form about different things are what a model learns the form from.
    """


def _said(metadata: str) -> int:
    """Digest of who says what, without case and white space."""
    values = json.loads(metadata)
    turns = [message for name in ("messages", "chosen", "rejected") for message in values.get(name, ())]
    return text_digest(json.dumps([(turn["role"], " ".join(turn["content"].split()).casefold()) for turn in turns]))


@stage(libraries=("pyarrow",))
def deduplicate_conversations(config: DeduplicateConversationsConfig, documents: Artifact, out: Path) -> Metrics:
    """Write shards/NNNNN/verdicts.parquet; of equal ones that with the smallest digest of id and text stays."""
    survivors: dict[int, tuple[int, str]] = {}
    tables = [read_table(shard / DOCUMENTS, ["id", "text", "metadata"]).to_pylist() for shard in documents.shards]
    for rows in tables:
        for row in rows:
            row["said"] = _said(row["metadata"])
            candidate = (document_digest(row["id"], row["text"]), row["id"])
            survivors[row["said"]] = min(survivors.get(row["said"], candidate), candidate)
    removed = 0
    for position, rows in enumerate(tables):
        verdicts: list[dict[str, Any]] = []
        for row in rows:
            kept, survivor = survivors[row["said"]][1] == row["id"], survivors[row["said"]][1]
            removed += not kept
            verdict = {"kept": True, "step": None, "reason": None, "detail": None}
            verdicts.append(
                verdict
                if kept
                else {
                    "kept": False,
                    "step": "deduplicate_conversations",
                    "reason": "duplicate",
                    "detail": f"says the same as {survivor}",
                }
            )
        write_table(out / "shards" / f"{position:05d}" / VERDICTS, verdicts, VERDICTS_SCHEMA)
    return {"documents": sum(map(len, tables)), "removed": removed}
