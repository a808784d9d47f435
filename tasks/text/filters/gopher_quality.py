"""gopher_quality: drops documents that do not look like English prose."""

from typing import TYPE_CHECKING

from pydantic import Field

from tasks.text.judging import Documents, Faults, Filter, Measured, first_faults

if TYPE_CHECKING:
    import numpy as np

    from tasks.text.words import Words

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_ELLIPSES = ("...", "…")


class GopherQuality(Filter):
    """Drop documents that do not look like English prose (Rae et al. 2021, arXiv 2112.11446, table A1).

    The decisions are those of datatrove's GopherQualityFilter with the same words.
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
        description="Fewest of the words the, be, to, of, and, that, have, with; 0 for other languages than English.",
    )

    marks_are_words: bool = Field(
        False,
        description="Whether each mark of punctuation counts as a word, as where datatrove's filter has the words of spaCy.",
    )

    def judge(self, documents: Documents) -> Faults:
        """What is wrong with each of the documents."""
        import numpy as np

        words, texts = documents.words_and_marks if self.marks_are_words else documents.words, documents.texts
        n_words = np.maximum(1, words.counts)
        counts = words.sums(~words.are_marks)
        some = counts > 0
        mean_length = words.sums(words.lengths * ~words.are_marks) / np.maximum(1, counts)
        hashes = np.array([text.count("#") for text in texts]) / n_words
        ellipses = np.array([sum(map(text.count, _ELLIPSES)) for text in texts]) / n_words
        bullets = np.array([_share_of_lines(text, ("•", "-"), self.max_bullet_lines) for text in texts])
        endings = np.array([_share_of_lines(text, _ELLIPSES, self.max_ellipsis_lines) for text in texts])
        alphabetic = words.sums(words.have_letter) / n_words
        stop_words = _distinct(words, STOP_WORDS)
        symbols = self.max_symbol_ratio or np.inf
        return first_faults(
            len(documents),
            (
                Measured("too few words", "min_words", self.min_words, counts, counts < self.min_words),
                Measured("too many words", "max_words", self.max_words, counts, counts > self.max_words),
                Measured(
                    "words too short",
                    "min_word_length",
                    self.min_word_length,
                    mean_length,
                    some & (mean_length < self.min_word_length),
                ),
                Measured(
                    "words too long",
                    "max_word_length",
                    self.max_word_length,
                    mean_length,
                    some & (mean_length > self.max_word_length),
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
                    self.min_alphabetic_words,
                    alphabetic,
                    some & (alphabetic < self.min_alphabetic_words),
                ),
                Measured(
                    "too few English stop words",
                    "min_stop_words",
                    self.min_stop_words,
                    stop_words,
                    stop_words < self.min_stop_words,
                ),
            ),
        )


def _share_of_lines(text: str, marks: tuple[str, ...], limit: float) -> float:
    """Share of lines that begin (bullets) or end (ellipses) with one of the marks; 0 where it cannot be above the limit."""
    most = sum(map(text.count, marks))
    if most <= limit * text.count("\n"):
        return 0.0
    lines = text.splitlines()
    if marks == _ELLIPSES:
        return sum(line.rstrip().endswith(marks) for line in lines) / max(1, len(lines))
    return sum(line.lstrip().startswith(marks) for line in lines) / max(1, len(lines))


def _distinct(words: "Words", wanted: tuple[str, ...]) -> "np.ndarray":
    """How many of the wanted words each document has: int64."""
    import numpy as np

    from tasks.characters import hash_word

    found = np.zeros(len(words.counts), np.int64)
    for word in wanted:
        at = np.flatnonzero(words.hashes == np.uint64(hash_word(word)))
        found[np.unique(np.searchsorted(words.offsets, at, side="right") - 1)] += 1
    return found
