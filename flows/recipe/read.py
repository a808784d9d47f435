"""Reading a recipe: YAML, --set assignments and a machine file, checked as a whole."""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from flows.recipe.explain import explain
from flows.recipe.recipe import AnyRecipe, FinetuneRecipe, Recipe
from model.errors import InputError
from tasks.engine.machine import Machine
from tasks.engine.secrets import secret_values

_Model = TypeVar("_Model", bound=BaseModel)


def check_no_secrets(recipe: AnyRecipe) -> None:
    """Refuse a recipe in which a secret is written: recipes are kept and shown.

    Raises:
        InputError: naming the variable whose value it is.
    """
    written = recipe.model_dump_json()
    for value, name in secret_values().items():
        if value in written:
            raise InputError(
                f"the recipe holds the value of {name}: take it out, and give it in the environment or as a Prefect Secret block"
            )


def _set(values: dict[str, Any], assignment: str) -> None:
    name, separator, text = assignment.partition("=")
    if not separator or not name.strip():
        raise InputError(f"--set {assignment!r} is not of the form SECTION.FIELD=VALUE")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--set {assignment!r}: the value is not YAML: {error}") from error
    digits = value.replace("_", "") if isinstance(value, str) else ""
    if digits.isascii() and digits.isdecimal() and len(digits) < 20:
        value = int(value)
    *path, last = name.strip().split(".")
    target: Any = values
    for part in path:
        if isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
            continue
        if not isinstance(target, dict):
            raise InputError(f"--set {assignment!r}: {part} is not a section")
        target = target.setdefault(part, {})
    if isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise InputError(f"--set {assignment!r}: {name} is not a field")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which no field is given twice: the first one would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping, refused if a name comes twice."""
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((name for name in names if isinstance(name, str) and names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        InputError: if the file is missing, no YAML, or no mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except FileNotFoundError:
        folder = path.parent
        near = difflib.get_close_matches(
            path.name, [p.name for p in folder.glob("*.yaml")] if folder.is_dir() else [], 1, 0.8
        )
        hint = f": did you mean {folder / near[0]}?" if near else ""
        raise InputError(f"there is no {what} {path}{hint}") from None
    except IsADirectoryError:
        raise InputError(
            f"{path} is a folder, and no {what}: `scratchlm init {path}` writes one for the text in it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the {what} {path} cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        fault = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise InputError(f"the {what} {path} is not YAML: {fault}") from error
    if not isinstance(values, dict):
        raise InputError(f"the {what} {path} is not a mapping of sections to fields")
    return values


def load_recipe(path: Path, assignments: list[str] | None = None, machine: Path | None = None) -> Recipe:
    """Read a recipe, apply --set assignments and a machine file, and check it as a whole.

    Paths of sources that are relative are taken from the current folder.

    Raises:
        InputError: with one sentence for each fault.
    """
    recipe = load_any_recipe(path, assignments, machine)
    if not isinstance(recipe, Recipe):
        raise InputError(
            f"{path} has a base, so it is a recipe for fine-tuning: use `scratchlm finetune {path}`"
        )
    return recipe


def load_any_recipe(
    path: Path, assignments: list[str] | None = None, machine: Path | None = None
) -> AnyRecipe:
    """Like `load_recipe`; a recipe with the field base is one for fine-tuning."""
    values = read_yaml(path, "recipe")
    values.setdefault("name", path.stem)
    return _checked(values, str(path), assignments, machine)


def recipe_of_record(
    record: dict[str, Any], assignments: list[str] | None = None, machine: Path | None = None
) -> Recipe:
    """The recipe that an earlier run was asked for, with --set assignments and a machine file.

    Args:
        record: what run.json says.

    Raises:
        InputError: with one sentence for each fault, or if the run trained nothing from scratch.
    """
    if record["flow"] in ("finetune", "evaluate"):
        raise InputError(f"the run was one of {record['flow']}, which trains nothing from scratch")
    values = {**record["recipe"], "machine": record["machine"]}
    recipe = _checked(values, "the recipe of the run", assignments, machine)
    assert isinstance(recipe, Recipe)
    return recipe


def _checked(
    values: dict[str, Any], origin: str, assignments: list[str] | None, machine: Path | None
) -> AnyRecipe:
    """The recipe that values are, once assignments and a machine file have been applied."""
    if machine:
        values["machine"] = read_yaml(machine, "machine file")
    for assignment in assignments or []:
        _set(values, assignment)
    kind: type[AnyRecipe] = FinetuneRecipe if "base" in values or "read_conversations" in values else Recipe
    try:
        recipe = kind.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error, origin, str(machine) if machine else None, kind)) from None
    check_no_secrets(recipe)
    return recipe


def load_machine(path: Path | None) -> Machine:
    """A machine file alone; what is detected if there is none.

    Raises:
        InputError: with one sentence for each fault.
    """
    return checked_values(Machine, read_yaml(path, "machine file") if path else {}, str(path))


def checked_values(kind: type[_Model], values: Any, origin: str) -> _Model:
    """Values from somewhere else as their model.

    Args:
        origin: names where they come from in errors.

    Raises:
        InputError: with one sentence for each fault.
    """
    if isinstance(values, kind):
        return values
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error, origin, kind=kind)) from None
