"""Keys: what a result depends on, as one digest. What cannot be written canonically is an error, not a guess."""

import hashlib
import json
import math
from typing import Any

from pydantic import BaseModel
from pydantic.config import JsonDict

LOCATION: JsonDict = {"location": True}
"""`Field(json_schema_extra=LOCATION)`: says where input lies, not what it is, so it enters no key."""


class KeyMaterialError(TypeError):
    """A value has no canonical form, so no key can be made from it."""


def canonical(value: Any, path: str = "value") -> Any:
    """`value` in JSON types, the same for equal values on every machine.

    Pydantic models become dictionaries without their location fields.

    Raises:
        KeyMaterialError: for anything else than None, bool, int, finite float, str, list, tuple,
            dict with str keys, and pydantic models of these. Paths, sets, callables and
            objects with an address in their repr are among the refused.
    """
    if value is None or isinstance(value, bool | int | str):
        if type(value) not in (type(None), bool, int, str):
            raise KeyMaterialError(
                f"{path}: {type(value).__name__} is a subclass of a plain type; use the plain one"
            )
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise KeyMaterialError(f"{path}: {value} is not a finite number")
        return value
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: canonical(getattr(value, name), f"{path}.{name}")
            for name, field in fields.items()
            if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("location"))
        }
    if isinstance(value, list | tuple):
        return [canonical(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        for name in value:
            if type(name) is not str:
                raise KeyMaterialError(f"{path}: the name {name!r} is not a string")
        return {name: canonical(item, f"{path}.{name}") for name, item in sorted(value.items())}
    raise KeyMaterialError(
        f"{path}: a value of type {type(value).__name__} has no canonical form; "
        "use numbers, strings, lists, dictionaries and pydantic models"
    )


def digest(value: Any) -> str:
    """32 hexadecimal digits of the SHA-256 of `canonical(value)` as JSON."""
    text = json.dumps(
        canonical(value), sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]
