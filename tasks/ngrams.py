"""N-grams of words as hashes: how texts are compared with each other and with benchmark items."""

import re

import numpy as np
import xxhash

_WORDS = re.compile(r"\w+")


class _WordHashes(dict[str, int]):
    """XXH3 of each word, computed when it is first seen."""

    def __missing__(self, word: str) -> int:
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return value


class WordHasher:
    """Hashes the lower-cased words of texts; remembers words, up to a bound."""

    _MAX_WORDS = 1_000_000

    def __init__(self) -> None:
        self._hashes = _WordHashes()

    def __call__(self, text: str) -> np.ndarray:
        """Hash of each word of `text`, in order: uint64."""
        if len(self._hashes) > self._MAX_WORDS:
            self._hashes.clear()
        words = _WORDS.findall(text.lower())
        return np.fromiter(map(self._hashes.__getitem__, words), np.uint64, len(words))


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
