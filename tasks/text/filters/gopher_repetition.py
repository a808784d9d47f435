"""gopher_repetition: drops documents that repeat themselves."""

import re
from typing import TYPE_CHECKING

from pydantic import Field

from tasks.text.judging import Documents, Fault, Faults, WordFilter

if TYPE_CHECKING:
    import numpy as np

    from tasks.text.words import Words

TOP_N_GRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
"""n, and the largest share of the characters that its commonest n-gram may have."""
DUPLICATE_N_GRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
"""n, and the largest share of the characters in n-grams that occur before."""

_PARAGRAPHS, _LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")


class GopherRepetition(WordFilter):
    """Drop documents that repeat themselves (Rae et al. 2021, arXiv 2112.11446, table A1).

    The decisions are those of datatrove's GopherRepetitionFilter with the same words.
    """

    max_duplicate_lines: float = Field(
        0.3, gt=0, le=1, description="Largest share of lines that occur before."
    )
    max_duplicate_paragraphs: float = Field(
        0.3, gt=0, le=1, description="Largest share of paragraphs that occur before."
    )
    max_duplicate_line_characters: float = Field(
        0.2, gt=0, le=1, description="The same, in characters of lines."
    )
    max_duplicate_paragraph_characters: float = Field(
        0.2, gt=0, le=1, description="The same, in characters of paragraphs."
    )

    def judge(self, documents: Documents) -> Faults:
        """What is wrong with each of the documents."""
        faults = [self._lines(text) for text in documents.texts]
        grams = _NGrams(documents, self.words_of(documents))
        for row in grams.rows_in_doubt():
            faults[row] = faults[row] or grams.fault(row)
        return faults

    def _lines(self, text: str) -> Fault | None:
        for pattern, kind, share, characters in (
            (
                _PARAGRAPHS,
                "paragraphs",
                self.max_duplicate_paragraphs,
                self.max_duplicate_paragraph_characters,
            ),
            (_LINES, "lines", self.max_duplicate_lines, self.max_duplicate_line_characters),
        ):
            parts = pattern.split(text.strip() if kind == "paragraphs" else text)
            if len(set(parts)) == len(parts):
                continue
            from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates

            again, characters_again = find_duplicates(parts)
            field = f"max_duplicate_{kind}"
            if again / len(parts) > share:
                return Fault(f"repeated {kind}", field, again / len(parts), share)
            if characters_again / len(text) > characters:
                value = characters_again / len(text)
                return Fault(f"repeated {kind}", f"{field[:-1]}_characters", value, characters)
        return None


class _NGrams:
    """N-grams of the words of documents.

    Most documents are far from any limit, and two sorts of all words of a batch tell so: of n-grams of 3 and 4 words no
    more can be the same than of their first 2, and where one of 6 to 10 words occurs before, its first 5 do so, too.
    The others are counted one by one, for those n that are in doubt.

    Attributes:
        doubtful: for each n which documents may be above its limit: bool.
    """

    def __init__(self, documents: Documents, words: "Words") -> None:
        import numpy as np

        self.words = words
        self.sizes = np.maximum(1, [len(text) for text in documents.texts])
        self.lengths = np.concatenate(([0], np.cumsum(self.words.lengths)))
        text_of, order, begins, runs = self._sorted(2)
        counts = np.empty(len(order), np.int64)
        counts[order] = np.repeat(runs, runs)
        self.doubtful = {}
        for n, limit in TOP_N_GRAMS:
            most = self._maxima(text_of, counts * (self._windows(n)[: len(counts)] + n - 1))
            self.doubtful[n] = most > limit * self.sizes
        text_of, order, begins, runs = self._sorted(5)
        again = np.ones(len(order), bool)
        if len(order):
            again[np.minimum.reduceat(order, begins)] = False
        at = np.flatnonzero(again)
        for n, limit in DUPLICATE_N_GRAMS:
            self.doubtful[n] = self._covered(at, n) > limit * self.sizes

    def _sorted(self, n: int) -> "tuple[np.ndarray, ...]":
        """Each n-gram's text; the order that brings equal ones of a text together; where each run of them begins; its length.

        An n-gram has the number of its first word. One at the end of a text reaches into the next: it may make a count
        larger, never smaller.
        """
        import numpy as np

        from tasks.ngrams import ngram_hashes

        hashes = ngram_hashes(self.words.hashes, n)
        text_of = np.repeat(np.arange(len(self.words.counts)), self.words.counts)[: len(hashes)]
        # The text in the upper bits, so that one sort is a sort of each.
        keys = (text_of.astype(np.uint64) << np.uint64(44)) | (hashes >> np.uint64(20))
        order = np.argsort(keys)
        keys = keys[order]
        begins = np.flatnonzero(np.concatenate((np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1])))
        return text_of, order, begins, np.diff(np.append(begins, len(keys)))

    def _windows(self, n: int) -> "np.ndarray":
        """Characters of the n words from each word on, or of as many as there are."""
        import numpy as np

        first = np.arange(len(self.lengths) - 1)
        return self.lengths[np.minimum(first + n, len(first))] - self.lengths[:-1]

    def _maxima(self, text_of: "np.ndarray", values: "np.ndarray") -> "np.ndarray":
        import numpy as np

        from tasks.text.words import maxima

        return maxima(values, np.searchsorted(text_of, np.arange(len(self.sizes) + 1)))

    def _covered(self, at: "np.ndarray", n: int) -> "np.ndarray":
        """Characters of the words of each text that are in one of the n-grams that begin at some words."""
        import numpy as np

        edges = np.zeros(len(self.words.lengths) + n + 1, np.int32)
        edges[at] = 1
        edges[n:] -= edges[:-n].copy()
        inside = np.cumsum(edges)[: len(self.words.lengths)] > 0
        return self.words.sums(self.words.lengths * inside)

    def rows_in_doubt(self) -> list[int]:
        """Documents that may be above a limit."""
        import numpy as np

        return np.flatnonzero(np.logical_or.reduce(list(self.doubtful.values()))).tolist()

    def fault(self, row: int) -> Fault | None:
        """What is wrong with the n-grams of a document, as datatrove counts them."""
        import numpy as np

        from tasks.ngrams import ngram_hashes

        own = slice(self.words.offsets[row], self.words.offsets[row + 1])
        hashes = self.words.hashes[own]
        ends = self.lengths[own.start : own.stop + 1]
        for n, limit in (*TOP_N_GRAMS, *DUPLICATE_N_GRAMS):
            grams = ngram_hashes(hashes, n)
            if not self.doubtful[n][row] or not len(grams):
                continue
            if n <= TOP_N_GRAMS[-1][0]:
                _, first, counts = np.unique(grams, return_index=True, return_counts=True)
                # Of several that are as common the one that comes first counts.
                most = counts.max()
                at = first[counts == most].min()
                characters = int((ends[at + n] - ends[at] + n - 1) * most)
            else:
                characters = _characters_again(grams, ends, n)
            share = characters / int(self.sizes[row])
            if share > limit:
                return Fault(f"repeated runs of {n} words", "", share, limit)
        return None


def _characters_again(grams: "np.ndarray", ends: "np.ndarray", n: int) -> int:
    """Characters of n-grams that occur before, where none of them overlaps the one before it."""
    seen: set[int] = set()
    total, at, values = 0, 0, grams.tolist()
    while at < len(values):
        if values[at] in seen:
            total += int(ends[at + n] - ends[at])
            at += n
        else:
            seen.add(values[at])
            at += 1
    return total
