"""repetition: drops documents that say the same over and over."""

from typing import TYPE_CHECKING

from pydantic import Field

from tasks.text.judging import Documents, Fault, Faults, Filter

if TYPE_CHECKING:
    import numpy as np

_PIECE, _MOST_CHARACTERS = 16, 1_000_000


class Repetition(Filter):
    """Drop documents that say the same over and over, whatever their language."""

    min_distinct: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Smallest share of a document's pieces of 16 characters that are not in it before.",
    )
    min_characters: int = Field(
        1_000, ge=0, description="Length from which a document is judged, in characters."
    )

    def judge(self, documents: Documents) -> Faults:
        """What is wrong with each of the documents."""
        return [self._fault(text) for text in documents.texts]

    def _fault(self, text: str) -> Fault | None:
        if len(text) < self.min_characters or at_least_distinct(text) >= self.min_distinct:
            return None
        distinct = distinct_share(text)
        if distinct >= self.min_distinct:
            return None
        return Fault("the same over and over", "min_distinct", distinct, self.min_distinct)


def _codes(text: str) -> "np.ndarray":
    import numpy as np

    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)


def at_least_distinct(text: str) -> float:
    """What `distinct_share` is at least: every eighth piece is looked at, which tells enough of most texts."""
    import numpy as np

    if not _PIECE <= len(text) <= _MOST_CHARACTERS:
        return 0.0
    pieces = np.lib.stride_tricks.sliding_window_view(_codes(text), _PIECE)
    factors = np.array([pow(0x9E3779B97F4A7C15, n, 1 << 64) for n in range(1, _PIECE + 1)], np.uint64)
    seen = np.unique((pieces[::8] * factors).sum(axis=1))
    return len(seen) / len(text)


def distinct_share(text: str) -> float:
    """Share of the pieces of 16 characters of a text that occur in it for the first time.

    Prose is above 0.9 in any language, source code and tables above 0.5, one line a hundred times at 0.01.
    """
    import numpy as np

    if len(text) > _MOST_CHARACTERS:
        # What repeats over such a distance is no fault, and memory stays bounded.
        parts = range(0, len(text), _MOST_CHARACTERS)
        shares = [distinct_share(text[first : first + _MOST_CHARACTERS]) for first in parts]
        return sum(shares) / len(shares)
    characters = _codes(text)
    if len(characters) < _PIECE:
        return 1.0
    # The hash of 2n characters from two of n: four passes, and none over Python objects.
    hashes, length = characters * np.uint64(0x9E3779B97F4A7C15), 1
    while length < _PIECE:
        left, right = hashes[:-length], hashes[length:]
        hashes = (left ^ (left >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + right
        length *= 2
    return len(np.unique(hashes)) / len(hashes)
