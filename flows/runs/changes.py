"""What differs between two runs of a stage, and how it is said: fields, code, libraries, sources, inputs."""

from collections.abc import Iterator
from typing import Any

Files = dict[str, Any]
"""What says the content of a file, by its path."""


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}[{i}]")
    else:
        yield path, value


def changed_values(old: Any, new: Any, path: str) -> list[tuple[str, Any, Any]]:
    """Path, old and new value of each leaf that differs between two values in JSON types."""
    before, after = dict(_leaves(old, path)), dict(_leaves(new, path))
    names = sorted(before.keys() | after.keys())
    return [
        (name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    ]


def _recipe_field(name: str) -> str:
    """A field of a stage's configuration as the recipe spells it."""
    return name.replace("train_model.train.", "train_model.").replace("train_model.model.", "model.")


def changed_code(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the modules that changed between two ingredients, and a clause for each library and for Python."""
    modules = [name.removeprefix(".") for name, _, _ in changed_values(old["code"], new["code"], "")]
    libraries = [
        f"library {name.removeprefix('.')} from {before} to {after}"
        for name, before, after in changed_values(old["libraries"], new["libraries"], "")
    ]
    if old["python"] != new["python"]:
        libraries.append(f"Python from {old['python']} to {new['python']}")
    return modules, libraries


def explain_change(
    old: dict[str, Any] | None, new: dict[str, Any], files: tuple[Files, Files] | None = None
) -> str:
    """Why ingredients `new` have no result although `old` had: which config, code, library, source or input changed.

    Args:
        files: what was read outside the store then, and what would be now, where that is known.
    """
    if old is None:
        return "no result yet"
    reasons = []
    for name, before, after in changed_values(old["config"], new["config"], new["stage"])[:3]:
        reasons.append(f"config {_recipe_field(name)} from {before!r} to {after!r}")
    modules, libraries = changed_code(old, new)
    if modules:
        reasons.append(f"code of {', '.join(modules[:3])}")
    reasons += libraries
    if old.get("source") != new.get("source"):
        before, after = files or (_files_in(old.get("source")), _files_in(new.get("source")))
        reasons.append(f"source: {_source_change(before, after)}")
    for name, before, after in changed_values(old["inputs"], new["inputs"], ""):
        if before and after:
            reasons.append(f"input {name.removeprefix('.')}")
    return "; ".join(reasons) or "its result is not in the store any more"


def _files_in(value: Any) -> Files:
    """The files that a fingerprint lists, each [path, size, SHA-256]."""
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        return {value[0]: value[1:]}
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {name: stamp for child in children for name, stamp in _files_in(child).items()}


def _source_change(before: Files, after: Files) -> str:
    counts = {
        "added": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
        "changed": sum(before[name] != after[name] for name in before.keys() & after.keys()),
    }
    return ", ".join(f"{count} files {what}" for what, count in counts.items() if count) or "it changed"
