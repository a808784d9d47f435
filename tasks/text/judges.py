"""What is measured of a document before it is dropped: each judge says what it found, what is allowed, and which field decides."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import (
    GopherRepetitionFilter,
    find_all_duplicate,
    find_duplicates,
    find_top_duplicate,
    get_n_grams,
)

from tasks.text.words import PlainWords

if TYPE_CHECKING:
    from tasks.text.clean import GopherQuality, GopherRepetition, Repetition, Rubbish


class Fault(NamedTuple):
    """Why a document is dropped.

    Attributes:
        reason: in a few words.
        field: of the step, that decides; empty if none does.
        value, limit: what was measured, and what the field allows.
    """

    reason: str
    field: str
    value: float
    limit: float


Judge = Callable[[str], Fault | None]
"""The fault of a text; None if it has none."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd\ue000-\uf8ff\U000f0000-\U0010fffd]+")
"""Control characters but for white space, escape and those that mending turns into letters; what stands for a character
that was lost; and characters without a meaning of their own (Unicode 15, section 23.5)."""
_ENCODED = re.compile(r"[A-Za-z0-9+/=_%-]{200,}")
"""A run that no prose has: base64, hexadecimal digits, and the like."""


def _share(pattern: re.Pattern[str], text: str) -> float:
    return sum(len(run) for run in pattern.findall(text)) / max(1, len(text))


def rubbish(step: "Rubbish") -> Judge:
    """Judges whether a text is text at all."""

    def judge(text: str) -> Fault | None:
        unprintable, encoded = _share(_UNPRINTABLE, text), _share(_ENCODED, text)
        if unprintable > step.max_unprintable:
            return Fault("characters that are no text", "max_unprintable", unprintable, step.max_unprintable)
        if encoded > step.max_encoded:
            return Fault("encoded data", "max_encoded", encoded, step.max_encoded)
        return None

    return judge


_PIECE, _MOST_CHARACTERS = 16, 1_000_000


def distinct_share(text: str) -> float:
    """Share of the pieces of 16 characters of a text that occur in it for the first time.

    Prose is above 0.9 in any language, source code and tables above 0.5, one line a hundred times at 0.01.
    """
    if len(text) > _MOST_CHARACTERS:
        # What repeats over such a distance is no fault, and memory stays bounded.
        parts = range(0, len(text), _MOST_CHARACTERS)
        shares = [distinct_share(text[first : first + _MOST_CHARACTERS]) for first in parts]
        return sum(shares) / len(shares)
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    if len(characters) < _PIECE:
        return 1.0
    # The hash of 2n characters from two of n: four passes, and none over Python objects.
    hashes, length = characters * np.uint64(0x9E3779B97F4A7C15), 1
    while length < _PIECE:
        left, right = hashes[:-length], hashes[length:]
        hashes = (left ^ (left >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + right
        length *= 2
    return len(np.unique(hashes)) / len(hashes)


def repetition(step: "Repetition") -> Judge:
    """Judges whether a text says the same over and over."""

    def judge(text: str) -> Fault | None:
        if len(text) < step.min_characters:
            return None
        distinct = distinct_share(text)
        if distinct < step.min_distinct:
            return Fault("the same over and over", "min_distinct", distinct, step.min_distinct)
        return None

    return judge


def _per_word(marks: tuple[str, ...]) -> Callable[[str, list[str]], float]:
    return lambda text, words: sum(text.count(mark) for mark in marks) / len(words)


def _lines(test: Callable[[str], bool]) -> Callable[[str, list[str]], float]:
    return lambda text, words: sum(map(test, text.splitlines())) / max(1, len(text.splitlines()))


def _mean_length(text: str, words: list[str]) -> float:
    return sum(map(len, words)) / len(words)


_STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}

# What datatrove says -> what a person reads, the field, and how what it judges is measured.
_QUALITY: dict[str, tuple[str, str, Callable[[str, list[str]], float]]] = {
    "gopher_short_doc": (
        "too few words",
        "min_words",
        lambda text, words: sum(any(map(str.isalnum, word)) for word in words),
    ),
    "gopher_long_doc": ("too many words", "max_words", lambda text, words: len(words)),
    "gopher_below_avg_threshold": ("words too short", "min_word_length", _mean_length),
    "gopher_above_avg_threshold": ("words too long", "max_word_length", _mean_length),
    "gopher_too_many_hashes": ("too many hashes", "max_symbol_ratio", _per_word(("#",))),
    "gopher_too_many_ellipsis": ("too many ellipses", "max_symbol_ratio", _per_word(("...", "…"))),
    "gopher_too_many_bullets": (
        "too many bullets",
        "max_bullet_lines",
        _lines(lambda line: line.lstrip().startswith(("•", "-"))),
    ),
    "gopher_too_many_end_ellipsis": (
        "too many lines that end in an ellipsis",
        "max_ellipsis_lines",
        _lines(lambda line: line.rstrip().endswith(("...", "…"))),
    ),
    "gopher_below_alpha_threshold": (
        "too few words with a letter",
        "min_alphabetic_words",
        lambda text, words: sum(any(map(str.isalpha, word)) for word in words) / len(words),
    ),
    "gopher_enough_stop_words": (
        "too few English stop words",
        "min_stop_words",
        lambda text, words: len(_STOP_WORDS & set(words)),
    ),
}


def gopher_quality(step: "GopherQuality") -> Judge:
    """datatrove's filter of text that does not look like English prose."""
    words: Any = PlainWords()
    block = GopherQualityFilter(
        min_doc_words=step.min_words,
        max_doc_words=step.max_words,
        min_avg_word_length=step.min_word_length,  # type: ignore[arg-type]
        max_avg_word_length=step.max_word_length,  # type: ignore[arg-type]
        max_symbol_word_ratio=step.max_symbol_ratio,
        max_bullet_lines_ratio=step.max_bullet_lines,
        max_ellipsis_lines_ratio=step.max_ellipsis_lines,
        max_non_alpha_words_ratio=step.min_alphabetic_words,
        min_stop_words=step.min_stop_words,
        language=words,
    )

    def judge(text: str) -> Fault | None:
        verdict = block.filter(Document(text=text, id=""))
        if not isinstance(verdict, tuple):
            return None
        reason, field, measure = _QUALITY[verdict[1]]
        return Fault(reason, field, measure(text, words.word_tokenize(text)), getattr(step, field))

    return judge


def gopher_repetition(step: "GopherRepetition") -> Judge:
    """datatrove's filter of text that repeats itself."""
    words: Any = PlainWords()
    block = GopherRepetitionFilter(
        dup_line_frac=step.max_duplicate_lines,
        dup_para_frac=step.max_duplicate_paragraphs,
        dup_line_char_frac=step.max_duplicate_line_characters,
        dup_para_char_frac=step.max_duplicate_paragraph_characters,
        language=words,
    )
    n_gram_limits = dict((*block.top_n_grams, *block.dup_n_grams))  # by n: 2 to 4 the commonest, 5 to 10 all

    def judge(text: str) -> Fault | None:
        verdict = block.filter(Document(text=text, id=""))
        if not isinstance(verdict, tuple):
            return None
        name = verdict[1]
        if name.startswith("dup_"):
            of_lines, of_characters = name.startswith("dup_line"), name.endswith("char_frac")
            pieces = re.split(r"\n+", text) if of_lines else re.split(r"\n{2,}", text.strip())
            pieces_again, characters_again = find_duplicates(pieces)
            value = characters_again / len(text) if of_characters else pieces_again / len(pieces)
            field = f"max_duplicate_{'line' if of_lines else 'paragraph'}{'_characters' if of_characters else 's'}"
            reason = f"repeated {'lines' if of_lines else 'paragraphs'}"
            return Fault(reason, field, value, getattr(step, field))
        n = int(re.sub(r"\D", "", name))
        found = words.word_tokenize(text)
        top = name.startswith("top_")
        again = find_top_duplicate(get_n_grams(found, n)) if top else find_all_duplicate(found, n)
        return Fault(f"repeated runs of {n} words", "", again / len(text), n_gram_limits[n])

    return judge
