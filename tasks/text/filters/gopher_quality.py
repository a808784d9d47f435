"""gopher_quality: drops documents that do not look like prose."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from tasks.text.judging import Documents, Faults, Measured, WordFilter, first_faults
from tasks.text.language_facts import FACTS

if TYPE_CHECKING:
    import numpy as np

    from tasks.text.words import Words

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_ELLIPSES = ("...", "…")


class GopherQuality(WordFilter):
    """Drop documents that do not look like prose (Rae et al. 2021, arXiv 2112.11446, table A1).

    The fields are for English; in other languages lengths of words, words with a letter and stop words are those of
    FineWeb-2, and languages that it does not know are judged without them. In English the decisions are those of
    datatrove's GopherQualityFilter with the same words.
    """

    min_words: int = Field(50, ge=0, description="Fewest words of a document.")
    max_words: int = Field(100_000, ge=1, description="Most words of a document.")
    min_word_length: float = Field(3, ge=0, description="Smallest mean length of a word, in characters.")
    max_word_length: float = Field(10, gt=0, description="Largest mean length of a word, in characters.")
    max_symbol_ratio: float = Field(0.1, ge=0, description="Most hashes or ellipses for each word.")
    max_bullet_lines: float = Field(
        0.9, ge=0, le=1, description="Largest share of lines that begin with a bullet."
    )
    max_ellipsis_lines: float = Field(
        0.3, ge=0, le=1, description="Largest share of lines that end in an ellipsis."
    )
    min_alphabetic_words: float = Field(0.8, ge=0, le=1, description="Smallest share of words with a letter.")
    min_stop_words: int = Field(
        2,
        ge=0,
        description="Fewest of the words the, be, to, of, and, that, have, with, or of those of the language.",
    )
    by_language: bool = Field(
        True,
        description="Whether documents in other languages than English are judged by the figures of their own.",
    )

    def judge(self, documents: Documents) -> Faults:
        """What is wrong with each of the documents."""
        import numpy as np

        words, texts = self.words_of(documents), documents.texts
        n_words = np.maximum(1, words.counts)
        counts = words.sums(~words.are_marks)
        some = counts > 0
        mean_length = words.sums(words.lengths * ~words.are_marks) / np.maximum(1, counts)
        hashes = np.array([text.count("#") for text in texts]) / n_words
        ellipses = np.array([sum(map(text.count, _ELLIPSES)) for text in texts]) / n_words
        bullets = np.array([_share_of_lines(text, ("•", "-"), self.max_bullet_lines) for text in texts])
        endings = np.array([_share_of_lines(text, _ELLIPSES, self.max_ellipsis_lines) for text in texts])
        alphabetic = words.sums(words.have_letter) / n_words
        limits = self._limits(documents)
        stop_words = _stop_words(words, documents.languages if self.by_language else None)
        symbols = self.max_symbol_ratio or np.inf
        return first_faults(
            len(documents),
            (
                Measured("too few words", "min_words", self.min_words, counts, counts < self.min_words),
                Measured("too many words", "max_words", self.max_words, counts, counts > self.max_words),
                Measured(
                    "words too short",
                    "min_word_length",
                    limits[0],
                    mean_length,
                    some & (mean_length < limits[0]),
                ),
                Measured(
                    "words too long",
                    "max_word_length",
                    limits[1],
                    mean_length,
                    some & (mean_length > limits[1]),
                ),
                Measured("too many hashes", "max_symbol_ratio", symbols, hashes, hashes > symbols),
                Measured("too many ellipses", "max_symbol_ratio", symbols, ellipses, ellipses > symbols),
                Measured(
                    "too many bullets",
                    "max_bullet_lines",
                    self.max_bullet_lines,
                    bullets,
                    bullets > (self.max_bullet_lines or np.inf),
                ),
                Measured(
                    "too many lines that end in an ellipsis",
                    "max_ellipsis_lines",
                    self.max_ellipsis_lines,
                    endings,
                    endings > (self.max_ellipsis_lines or np.inf),
                ),
                Measured(
                    "too few words with a letter",
                    "min_alphabetic_words",
                    limits[2],
                    alphabetic,
                    some & (alphabetic < limits[2]),
                ),
                Measured(
                    "too few stop words",
                    "min_stop_words",
                    limits[3],
                    stop_words,
                    stop_words < limits[3],
                ),
            ),
        )

    def _limits(self, documents: Documents) -> "np.ndarray":
        """Shortest and longest mean length of a word, smallest share with a letter, and fewest stop words, of each document."""
        import numpy as np

        own = (self.min_word_length, self.max_word_length, self.min_alphabetic_words, self.min_stop_words)
        if not self.by_language:
            return np.repeat(np.array([own], float).T, len(documents), axis=1)
        of: dict[str, tuple[float, ...]] = {"en": own}
        for language in {language for language, _ in documents.languages} - {"en"}:
            facts = FACTS.get(language)
            of[language] = (
                (*facts[:3], min(self.min_stop_words, len(facts.stop_words.split())))
                if facts
                else (0, math.inf, 0, 0)
            )
        return np.array([of[language] for language, _ in documents.languages], float).reshape(-1, 4).T


def _stop_words(words: "Words", languages: "Sequence[tuple[str, float]] | None") -> "np.ndarray":
    """How many of the stop words of its language each document has: int64."""
    import numpy as np

    found = np.zeros(len(words.counts), np.int64)
    rows: dict[str, list[int]] = {}
    for row in range(len(found)):
        rows.setdefault(languages[row][0] if languages else "en", []).append(row)
    for language, own in rows.items():
        wanted = (
            STOP_WORDS
            if language == "en"
            else FACTS[language].stop_words.split()
            if language in FACTS
            else ()
        )
        found[own] = _distinct(words, own, wanted)
    return found


def _share_of_lines(text: str, marks: tuple[str, ...], limit: float) -> float:
    """Share of lines that begin (bullets) or end (ellipses) with one of the marks; 0 where it cannot be above the limit."""
    most = sum(map(text.count, marks))
    if most <= limit * text.count("\n"):
        return 0.0
    lines = text.splitlines()
    if marks == _ELLIPSES:
        return sum(line.rstrip().endswith(marks) for line in lines) / max(1, len(lines))
    return sum(line.lstrip().startswith(marks) for line in lines) / max(1, len(lines))


def _distinct(words: "Words", rows: list[int], wanted: "Sequence[str]") -> "np.ndarray":
    """How many of the wanted words some of the documents have: int64."""
    import numpy as np

    from tasks.characters import hash_word

    found = np.zeros(len(rows), np.int64)
    hashes = words.hashes
    offsets = np.concatenate(([0], np.cumsum(words.counts[rows])))
    if len(rows) < len(words.counts):
        hashes = np.concatenate([hashes[words.offsets[row] : words.offsets[row + 1]] for row in rows])
    for word in wanted:
        at = np.flatnonzero(hashes == np.uint64(hash_word(word)))
        found[np.unique(np.searchsorted(offsets, at, side="right") - 1)] += 1
    return found
