"""verdicts.parquet: a row for each row of a documents file, in its order: was it kept, and if not, why."""

from typing import Any

from tasks.tables import Schema

VERDICTS = "verdicts.parquet"
VERDICTS_SCHEMA: Schema = {"kept": "bool", "step": "string", "reason": "string", "detail": "string"}


def kept(detail: str | None = None) -> dict[str, Any]:
    """The verdict on a document that stays."""
    return {"kept": True, "step": None, "reason": None, "detail": detail}


def dropped(step: str, reason: str, detail: str) -> dict[str, Any]:
    """The verdict on a document that does not stay.

    Args:
        step: what drops it: a stage, or a step of cleaning.
        reason: why, in a word or two: what is counted.
        detail: why this one, for a person.
    """
    return {"kept": False, "step": step, "reason": reason, "detail": detail}
