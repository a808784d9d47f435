"""Objects that travel to another process: their class by name, their fields as JSON."""

import importlib
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from model.base_config import Config


def _pack(part: Config | None) -> dict[str, Any] | None:
    if part is None:
        return None
    kind = type(part)
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": part.model_dump(mode="json")}


def _unpack(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    module, name = value["class"].split(":")
    return getattr(importlib.import_module(module), name).model_validate(value["fields"])


Part = Annotated[Any, BeforeValidator(_unpack), PlainSerializer(_pack)]
"""A field that holds any `Config` with methods, such as an objective, without knowing its class."""
