"""N-grams of words as hashes: how texts are compared with each other and with benchmark items.

A word is a longest run of letters, digits, marks and underscores of the lower-cased text in its
composed form (NFC). In scripts without spaces (Chinese, Japanese, Thai, ...) each character is one: which characters make a word there is a guess of a dictionary's,
and two texts that differ in one character would differ in many guesses.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.batches import batches
from tasks.characters import (
    IN_WORD,
    IS_WORD,
    MOST_CHARACTERS,
    SPACE,
    Characters,
    composed,
    hash_word,
    kinds_of,
    parts_of,
)


class _Spaces(dict[int, int | str]):
    """What each character becomes, so that words stand between spaces."""

    def __missing__(self, code: int) -> int | str:
        kind = int(kinds_of(np.array([code]))[0])
        value = f" {chr(code)} " if kind & IS_WORD else code if kind & IN_WORD else " "
        self[code] = value
        return value


class _WordHashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        value = self[word] = hash_word(word)
        return value


class WordHasher:
    """Hashes the words of short texts, one by one, as `hash_words` does those of many; remembers words, up to a bound."""

    _MAX_WORDS = 1_000_000

    def __init__(self) -> None:
        self._hashes, self._spaces = _WordHashes(), _Spaces()

    def __call__(self, text: str) -> np.ndarray:
        """Hash of each word of `text`, in order: uint64."""
        if len(self._hashes) > self._MAX_WORDS:
            self._hashes.clear()
        words = composed(text).lower().translate(self._spaces).split()
        return np.fromiter(map(self._hashes.__getitem__, words), np.uint64, len(words))


def _spans(characters: Characters, marks: bool) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each word."""
    alone = (characters.kinds & IS_WORD) != 0
    inside = (characters.kinds & IN_WORD) != 0
    if marks:
        are_marks = ~inside & ((characters.kinds & SPACE) == 0)
        alone, inside = alone | are_marks, inside | are_marks
    if not alone.any():
        return characters.runs(IN_WORD)
    # A run of characters is cut before and behind each that is a word by itself; behind the last there is a line end.
    cut = ~(inside[:-1] & inside[1:]) | alone[:-1] | alone[1:]
    begins = np.flatnonzero(inside & np.concatenate(([True], cut)))
    return begins, np.flatnonzero(inside & np.concatenate((cut, [True]))) + 1


def _hash_together(texts: Sequence[str], marks: bool) -> tuple[np.ndarray, np.ndarray]:
    characters = Characters(texts)
    starts, ends = _spans(characters, marks)
    return characters.hashes(starts, ends), characters.firsts(starts)


def hash_words(texts: Sequence[str], *, marks: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hashes of the words of texts, some texts at a time.

    Args:
        marks: each mark of punctuation is a word, too, as in source code it is one.

    Yields:
        words: of some texts one after the other: uint64.
        offsets: of the first word of each text in them, and their number: int64 (texts + 1,).
    """
    for batch in batches([len(text) for text in texts], MOST_CHARACTERS):
        lowered = [composed(texts[number]).lower() for number in batch]
        if len(lowered) > 1 or len(lowered[0]) <= MOST_CHARACTERS:
            yield _hash_together(lowered, marks)
        else:
            words = np.concatenate([_hash_together([part], marks)[0] for part in parts_of(lowered[0])])
            yield words, np.array([0, len(words)])


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """Hash of each n-gram of word hashes: uint64, max(0, len(words) - n + 1) of them."""
    count = len(words) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    with np.errstate(over="ignore"):
        value = words[:count].copy()
        for offset in range(1, n):
            value *= np.uint64(0x9E3779B97F4A7C15)
            value ^= words[offset : offset + count]
            value ^= value >> np.uint64(29)
        value *= np.uint64(0xBF58476D1CE4E5B9)
        return value ^ (value >> np.uint64(32))


def ngrams_of(words: np.ndarray, offsets: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the n-grams of several texts, none across two of them, and the offsets of each text's."""
    counts = np.diff(offsets)
    of_text = np.maximum(0, counts - n + 1)
    hashes = ngram_hashes(words, n)
    # The last n - 1 words of a text begin none of its own.
    ends = np.repeat(offsets[1:], counts)[: len(hashes)]
    inside = np.arange(n, n + len(hashes)) <= ends
    return hashes[inside], np.concatenate(([0], np.cumsum(of_text)))
