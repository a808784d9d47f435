"""verdicts.parquet: a row for each row of a documents file, in its order: was it kept, and if not, why."""

from typing import Any

from tasks.tables import Schema

VERDICTS = "verdicts.parquet"
VERDICTS_SCHEMA: Schema = {
    "kept": "bool",
    "step": "string",
    "reason": "string",
    "detail": "string",
    "field": "string",
    "value": "float64",
    "limit": "float64",
}
"""field: what of the recipe decided; value and limit: what was measured, and what the field allows."""


def kept(detail: str | None = None) -> dict[str, Any]:
    """The verdict on a document that stays."""
    return {**dict.fromkeys(VERDICTS_SCHEMA), "kept": True, "detail": detail}


def dropped(
    step: str,
    reason: str,
    detail: str,
    field: str | None = None,
    value: float | None = None,
    limit: float | None = None,
) -> dict[str, Any]:
    """The verdict on a document that does not stay.

    Args:
        step: what drops it: a stage, or a step of cleaning.
        reason: why, in a word or two: what is counted.
        detail: why this one, for a person.
        field: which field of the recipe decided, if one did; value and limit: what was measured, and what it allows.
    """
    return {
        "kept": False,
        "step": step,
        "reason": reason,
        "detail": detail,
        "field": field,
        "value": value,
        "limit": limit,
    }
