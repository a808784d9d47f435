"""The characters of many texts as arrays: words are found and hashed without a Python object for each.

Every function here takes time linear in the text, whatever is in it.
"""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property

import numpy as np

MOST_CHARACTERS = 1 << 20
"""Characters that are looked at together: what a batch needs of memory is some sixty times as many bytes."""

SPACE, LETTER, LETTER_OR_DIGIT, IN_WORD, IS_WORD = 1, 2, 4, 8, 16
"""Kinds of characters, as bits: white space; letters; letters and digits, with the vowel signs and accents of letters; those
and underscores; what is a word by itself, since its script has no space between words."""

_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
"""First and last code point of the scripts that are written without spaces (Unicode 15, section 6.2 and UAX 14, class SA)."""


def _kind(code: int) -> int:
    character = chr(code)
    letter_or_digit = character.isalnum() or unicodedata.category(character)[0] == "M"
    of_word = letter_or_digit or character == "_"
    alone = of_word and any(first <= code <= last for first, last in _WITHOUT_SPACES)
    return (
        character.isspace() * SPACE
        | character.isalpha() * LETTER
        | letter_or_digit * LETTER_OR_DIGIT
        | of_word * IN_WORD
        | alone * IS_WORD
    )


class Kinds:
    """The kind of every character, by a function that is asked for each when it is met for the first time."""

    def __init__(self, kind: Callable[[int], int]) -> None:
        self.kind = kind
        self.kinds, self.known = np.zeros(0x110000, np.uint8), np.zeros(0x110000, bool)

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """The kind of each of the characters: uint8."""
        seen = np.zeros(0x110000, bool)
        seen[codes] = True
        for code in np.flatnonzero(seen & ~self.known).tolist():
            self.kinds[code] = self.kind(code)
        np.logical_or(self.known, seen, out=self.known)
        return self.kinds[codes]


kinds_of = Kinds(_kind)
"""The kind of each character, as bits."""


_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_MASK = (1 << 64) - 1


@cache
def _powers(base: int) -> np.ndarray:
    """base^0, base^1, ... modulo 2^64."""
    powers = np.ones(1, np.uint64)
    while len(powers) <= 2 * MOST_CHARACTERS:
        powers = np.concatenate((powers, powers * np.uint64(pow(base, len(powers), 1 << 64))))
    return powers


def mix(values: np.ndarray) -> np.ndarray:
    """Spread 64 bits over all 64 (the finalizer of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def hash_word(word: str) -> int:
    """The hash that `Characters.hashes` gives of a span: a polynomial over its characters modulo 2^64, mixed."""
    value, power = 0, 1
    for character in word:
        value = (value + (ord(character) + 1) * power) & _MASK
        power = power * _BASE & _MASK
    value ^= len(word)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ (value >> 33)) * factor & _MASK
    return value ^ (value >> 33)


def composed(text: str) -> str:
    """A text in the form in which letters and accents are one character (NFC), so that equal words are equal characters."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class Characters:
    """Texts, one after the other with a line end behind each, as arrays.

    Attributes:
        codes: code point of each character: uint32.
        starts, ends: of each text in it.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        joined = "\n".join((*texts, ""))
        self.codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self.ends = np.cumsum(lengths + 1) - 1
        self.starts = self.ends - lengths

    @cached_property
    def kinds(self) -> np.ndarray:
        """Kind of each character: uint8."""
        return kinds_of(self.codes)

    def runs(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """Start and end of each longest run of characters of a kind. The line end behind a text is of none that is in words."""
        inside = (self.kinds & kind) != 0
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        if len(inside) and inside[0]:
            edges = np.concatenate(([0], edges))
        return edges[0::2], edges[1::2]

    @cached_property
    def _sums(self) -> np.ndarray:
        terms = self.codes.astype(np.uint64)
        terms += np.uint64(1)
        terms *= _powers(_BASE)[: len(terms)]
        sums = np.zeros(len(terms) + 1, np.uint64)
        np.cumsum(terms, out=sums[1:])
        return sums

    def hashes(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Hash of each span: uint64, equal for equal characters wherever they are."""
        values = (self._sums[ends] - self._sums[starts]) * _powers(_INVERSE)[starts]
        return mix(values ^ (ends - starts).astype(np.uint64))

    def firsts(self, starts: np.ndarray) -> np.ndarray:
        """For spans in order: number of the first of each text, and of all at the end: int64 (texts + 1,)."""
        return np.append(np.searchsorted(starts, self.starts), len(starts))


def parts_of(text: str) -> Iterator[str]:
    """A text that is too long to be looked at as a whole, cut at white space where there is any."""
    start = 0
    while start < len(text):
        end = start + MOST_CHARACTERS
        if end < len(text):
            blank = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
            end = blank if blank > start else end
        yield text[start:end]
        start = end
