"""selection.parquet: the side that each document ends on; the only decision that later chapters read."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.tables import Schema

SELECTION = "selection.parquet"
SELECTION_SCHEMA: "Schema" = {
    "id": "string",
    "side": "string",
    "reason": "string",
    "text_digest": "uint64",
    "bytes": "int64",
}
"""text_digest, bytes: of the text, the latter in UTF-8, so that who looks for some documents need not read them all."""

TRAIN, VALIDATION, DROPPED = "train", "validation", "dropped"
SIDES = (TRAIN, VALIDATION)
