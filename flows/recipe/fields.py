"""The fields of a recipe, from the models that read it: what `scratchlm fields` prints."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from flows.recipe.recipe import FinetuneRecipe, Recipe
from model.errors import InputError


@dataclass(frozen=True)
class FieldHelp:
    """One field: its place in the recipe, kind, default and description."""

    name: str
    kind: str
    default: str
    description: str


def _models(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in get_args(kind) for model in _models(part)]


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(str(value) for value in get_args(kind))
    if kind is type(None):
        return "empty"
    if get_origin(kind) is Annotated:
        return _kind(get_args(kind)[0])
    if get_origin(kind) is tuple:
        return f"list of {_kind(get_args(kind)[0])}"
    if get_args(kind):
        return " or ".join(_kind(part) for part in get_args(kind) if not isinstance(part, str | BaseModel))
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _fields(model: type[BaseModel], prefix: str) -> Iterator[FieldHelp]:
    for name, field in model.model_fields.items():
        place = f"{prefix}.{name}" if prefix else name
        inner = _models(field.annotation)
        if inner:
            if isinstance(field.default, BaseModel) and type(None) in get_args(field.annotation):
                yield FieldHelp(place, "on, off, or its fields", "on", field.description or "")
            repeated = get_origin(field.annotation) is tuple
            for choice in inner:
                yield from _fields(choice, place + ("[]" if repeated else ""))
            continue
        yield FieldHelp(place, _kind(field.annotation), _default(field.default), field.description or "")


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None or value == ():
        return "empty"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def list_fields(section: str | None) -> list[FieldHelp]:
    """The fields of one section of a recipe, or of all; those of fine-tuning alone come last.

    Raises:
        InputError: if there is no such section.
    """
    fields = list(_fields(Recipe, ""))
    fields += [
        field
        for field in _fields(FinetuneRecipe, "")
        if field.name.split(".")[0].split("[")[0] not in Recipe.model_fields
    ]
    if section is None:
        return fields
    sections = list(dict.fromkeys([*Recipe.model_fields, *FinetuneRecipe.model_fields]))
    if section not in sections:
        near = difflib.get_close_matches(section, sections, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"sections are {', '.join(sections)}"
        raise InputError(f"a recipe has no section {section!r}: {hint}")
    return [field for field in fields if field.name.split(".")[0].split("[")[0] == section]
