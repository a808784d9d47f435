"""What is wrong with a recipe, as sentences with field, value and mend."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from flows.recipe.recipe import Recipe


def _section(kind: Any) -> type[BaseModel] | None:
    options = [kind, *get_args(kind)]
    options += [part for option in options for part in get_args(option)]
    return next(
        (option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None
    )


def _fields_at(location: tuple[int | str, ...], kind: type[BaseModel]) -> list[str]:
    """Names of the fields of the section that a location in a recipe lies in."""
    section: type[BaseModel] | None = kind
    for part in location[:-1]:
        if section is None:
            return []
        if isinstance(part, str) and part in section.model_fields:
            section = _section(section.model_fields[part].annotation)
    return list(section.model_fields) if section else []


def _sentence(error: Any, origin: str, model: type[BaseModel]) -> str:
    location, kind = tuple(error["loc"]), error["type"]
    field = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        fields = _fields_at(location, model)
        near, known = difflib.get_close_matches(str(location[-1]), fields, 1), ", ".join(fields) or "none"
        return f"{origin}: unknown field {field}: " + (
            f"did you mean {near[0]!r}?" if near else f"known here are {known}"
        )
    if kind == "missing":
        return f"{origin}: the field {field} is missing: add it"
    message = error["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, such as [a, b]")
    message = message.replace("Tuple", "The list").replace(" after validation, not 0", "")
    if kind == "value_error":
        return f"{origin}: {field + ': ' if field else ''}{message}"
    return f"{origin}: {field} is {error['input']!r}: {message[0].lower()}{message[1:]}"


def explain(
    error: ValidationError, origin: str, machine: str | None = None, kind: type[BaseModel] = Recipe
) -> str:
    """The faults of a recipe as sentences with field, value and mend; those that follow from another one are left out.

    Args:
        origin: where the values come from.
        machine: where those of the section machine come from, if that is another place.
        kind: the model that was to be made.
    """
    faults = error.errors()
    misspelt = {
        (*fault["loc"][:-1], name)
        for fault in faults
        if fault["type"] == "extra_forbidden"
        for name in difflib.get_close_matches(str(fault["loc"][-1]), _fields_at(fault["loc"], kind), 1)
    }
    places = [fault["loc"] for fault in faults]
    roots = [
        fault
        for fault in faults
        if not (fault["type"] == "missing" and fault["loc"] in misspelt)
        and not any(place != fault["loc"] and place[: len(fault["loc"])] == fault["loc"] for place in places)
    ]
    origins = [machine if machine and fault["loc"][:1] == ("machine",) else origin for fault in roots]
    return "\n".join(_sentence(fault, place, kind) for fault, place in zip(roots, origins, strict=True))
