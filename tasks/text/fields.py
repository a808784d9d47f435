"""Fields of rows, and fields of those."""

from typing import Any


def field_of(row: Any, name: str) -> Any:
    """The value of a field, or of a field of a field: a.b; None if there is none."""
    if not isinstance(row, dict) or name in row:
        return row.get(name) if isinstance(row, dict) else None
    first, _, rest = name.partition(".")
    return field_of(row.get(first), rest) if rest else None
