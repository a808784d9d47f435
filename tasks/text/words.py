"""Words as the papers on filtering count them, of many texts at once; and for datatrove's blocks, of one."""

import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from datatrove.utils.word_tokenizers import WordTokenizer

from tasks.characters import (
    IS_WORD,
    LETTER,
    LETTER_OR_DIGIT,
    MOST_CHARACTERS,
    SPACE,
    Characters,
    composed,
    parts_of,
)
from tasks.text.marks import words_and_marks

_SPACELESS_SHARE = 0.1
"""From which share of letters in scripts without spaces a text is cut into words by a dictionary."""


class Words:
    """The words of some texts: what stands between white space, without the marks around it.

    A mark of punctuation is no word (Rae et al. 2021, arXiv 2112.11446, section A1.1, split at white space): where each
    counts as one, a page of documentation has 0.72 words with a letter instead of 0.94, and is dropped. Texts in
    Chinese, Japanese, Thai and the like are cut by the dictionaries of ICU (Unicode UAX 29, section 4).

    Args:
        marks: each mark is a word, too, see `words_and_marks`.

    Attributes:
        hashes: of each word, upper and lower case apart: uint64.
        lengths: in characters: int64.
        have_letter: bool.
        are_marks: which have no letter and no digit; none has unless marks are words: bool.
        offsets: of the first word of each text, and their number: int64 (texts + 1,).
    """

    def __init__(self, texts: Sequence[str], *, marks: bool = False) -> None:
        texts = list(map(composed, texts))
        if len(texts) == 1 and len(texts[0]) > MOST_CHARACTERS:
            parts = [_found([part], marks) for part in parts_of(texts[0])]
            offsets = np.array([0, sum(len(part[0]) for part in parts)])
        else:
            parts = [_found(texts, marks)]
            offsets = parts[0][4]
        self.hashes, self.lengths, self.have_letter, self.are_marks = (
            np.concatenate([part[column] for part in parts]) for column in range(4)
        )
        self.offsets = offsets

    @cached_property
    def counts(self) -> np.ndarray:
        """Words of each text: int64."""
        return np.diff(self.offsets)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """For a value of each word, its sum over the words of each text: int64."""
        return sums(values, self.offsets[:-1], self.offsets[1:])


def _found(texts: Sequence[str], marks: bool) -> tuple[np.ndarray, ...]:
    """Hash, length, whether there is a letter, and whether there is neither letter nor digit, of each word; offsets of texts."""
    characters = Characters(texts)
    starts, ends = _spans(texts, characters, marks)
    letters = sums((characters.kinds & LETTER) != 0, starts, ends)
    others = sums((characters.kinds & LETTER_OR_DIGIT) != 0, starts, ends)
    hashes = characters.hashes(starts, ends)
    return hashes, ends - starts, letters > 0, others == 0, characters.firsts(starts)


def _spans(
    texts: Sequence[str], characters: Characters, marks: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each word."""
    starts, ends = words_and_marks(characters) if marks else _between_spaces(characters)
    alone = (characters.kinds & IS_WORD) != 0
    return _with_dictionary(texts, characters, alone, starts, ends) if alone.any() else (starts, ends)


def _between_spaces(characters: Characters) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each word: from the first to the last letter or digit between two spaces."""
    starts, ends = characters.runs(LETTER_OR_DIGIT)
    if not len(starts):
        return starts, ends
    # Two runs are one word if no space is between them.
    spaces = np.cumsum((characters.kinds & SPACE) != 0, dtype=np.int32)
    apart = spaces[starts[1:]] != spaces[starts[:-1]]
    return starts[np.concatenate(([True], apart))], ends[np.concatenate((apart, [True]))]


def _with_dictionary(
    texts: Sequence[str], characters: Characters, alone: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each word, of texts in scripts without spaces as a dictionary cuts them."""
    from icu4py.breakers import WordBreaker

    in_words = (characters.kinds & LETTER_OR_DIGIT) != 0
    places = characters.starts, characters.ends
    share = sums(alone, *places) / np.maximum(1, sums(in_words, *places))
    firsts = characters.firsts(starts)
    found_starts, found_ends = [], []
    for number, text in enumerate(texts):
        if share[number] <= _SPACELESS_SHARE:
            own = slice(firsts[number], firsts[number + 1])
            found_starts.append(starts[own])
            found_ends.append(ends[own])
            continue
        # One dictionary for all of these scripts: the language decides of other scripts only.
        last = characters.starts[number] + np.cumsum([len(piece) for piece in WordBreaker(text, "en")])
        first = np.concatenate((characters.starts[number : number + 1], last[:-1]))
        is_word = sums(in_words, first, last) > 0
        found_starts.append(first[is_word])
        found_ends.append(last[is_word])
    return np.concatenate(found_starts), np.concatenate(found_ends)


def sums(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sum of the values in each span: int64."""
    found = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    return found[ends] - found[starts]


def maxima(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The largest of the values from each offset to the next; 0 where there is none."""
    found = np.zeros(len(offsets) - 1, np.int64)
    there = np.flatnonzero(np.diff(offsets))
    if len(there):
        found[there] = np.maximum.reduceat(values, offsets[there])
    return found


_SENTENCES = re.compile(r"(?<=[.!?])\s+")


class PlainWords(WordTokenizer):
    """The words of `Words` for datatrove's blocks, text by text; many times faster than a parser."""

    def __init__(self) -> None:
        super().__init__("en")

    def word_tokenize(self, text: str) -> list[str]:
        """Words of `text`, in order; of a text of marks alone the marks, so that no count is divided by zero."""
        text = composed(text)
        spans = zip(*(side.tolist() for side in _spans([text], Characters([text]))), strict=True)
        return [text[start:end] for start, end in spans] or text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """Sentences: pieces that end in a full stop, exclamation or question mark."""
        return [sentence for sentence in _SENTENCES.split(text.strip()) if sentence]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each sentence, in characters."""
        spans, start = [], 0
        for sentence in self.sent_tokenize(text):
            start = text.index(sentence, start)
            spans.append((start, start + len(sentence)))
            start += len(sentence)
        return spans
