"""selection.parquet: the side that each document ends on; the only decision that later chapters read."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.tables import Schema

SELECTION = "selection.parquet"
SELECTION_SCHEMA: "Schema" = {"id": "string", "side": "string", "reason": "string", "text_digest": "uint64"}

TRAIN, VALIDATION, DROPPED = "train", "validation", "dropped"
SIDES = (TRAIN, VALIDATION)
