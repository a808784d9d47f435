"""Classifiers of text in files of fastText (Joulin et al. 2016, arXiv 1607.01759): asking one what it takes a text for."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from model.errors import InputError

LABEL = "__label__"
_MOST_CHARACTERS = 50_000


def one_line(text: str) -> str:
    """A text as fastText reads it: one line, and of a long text the beginning."""
    return " ".join(text[:_MOST_CHARACTERS].split()).encode("utf-8", "replace").decode()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _load(path: str, digest: str) -> Any:
    from fasttext.FastText import _FastText

    try:
        is_same = file_digest(Path(path)) == digest
    except OSError as error:
        raise InputError(f"the classifier {path} cannot be read: {error}") from error
    if not is_same:
        raise InputError(
            f"the classifier {path} is not the file that the recipe was read with: give it back, or run the recipe again"
        )
    try:
        return _FastText(path).f
    except ValueError as error:
        raise InputError(f"{path} is no classifier of fastText: {error}") from error


def probabilities(path: str, digest: str, label: str, texts: Sequence[str]) -> list[float]:
    """How probable a classifier holds it that each text has a label, to four places.

    Args:
        path: a file of fastText.
        digest: its SHA-256.

    Raises:
        InputError: if it is another file, or does not know the label.
    """
    model = _load(path, digest)
    labels = [known.removeprefix(LABEL) for known in model.getLabels("strict")[0]]
    if label not in labels:
        raise InputError(
            f"the classifier {path} knows the labels {', '.join(labels)}, and no {label!r}: set the field label"
        )
    found = []
    for text in texts:
        told = {name: share for share, name in model.predict(one_line(text), -1, 0.0, "strict")}
        found.append(round(min(1.0, told.get(LABEL + label, 0.0)), 4))
    return found
