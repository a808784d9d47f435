"""A Hugging Face dataset in a folder: what is read of it lies in it, and is in its fingerprint."""

from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import read_json
from tasks.engine.sources import walk


def check_dataset_folder(folder: Path, subset: str | None, field: str) -> None:
    """Refuse a folder whose README or index names files that its fingerprint does not cover.

    Args:
        subset: configuration that is read; the default one if None.
        field: of the recipe that named it, for the sentence.

    Raises:
        InputError: naming the first of them.
    """
    known = {path.resolve() for path in walk(folder)}
    for name in _saved_files(folder) or _data_files(folder, subset, field):
        path = Path(name)
        if "://" in name or (folder / path).resolve() not in known:
            raise InputError(
                f"{field}: the dataset in {str(folder)!r} reads {name}, which is hidden or not in that folder, so that a change "
                "of it would go unseen: copy it into the folder and name it there"
            )


def _saved_files(folder: Path) -> list[str]:
    """Files of what `save_to_disk` wrote; empty if it did not write this folder."""
    names = []
    for state in (path for path in walk(folder) if path.name == "state.json"):
        listed: Any = (read_json(state) or {}).get("_data_files", ())
        names += [str(state.parent / item["filename"]) for item in listed]
    return names


def _data_files(folder: Path, subset: str | None, field: str) -> list[str]:
    """Files that the loader chooses, by README or by their names."""
    import datasets

    try:
        found = datasets.load_dataset_builder(str(folder), name=subset).config.data_files or {}
    except (ValueError, KeyError, OSError) as error:
        sentence = " ".join(str(error).split())[:200]
        raise InputError(f"{field}: the dataset in {str(folder)!r} cannot be opened: {sentence}") from error
    return [str(path) for paths in found.values() for path in paths]
