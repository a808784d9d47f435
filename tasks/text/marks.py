"""Words and marks: each mark of punctuation is a word, as in the corpora that were filtered with spaCy's words (FineWeb)."""

import unicodedata

import numpy as np

from tasks.characters import LETTER, SPACE, Characters, Kinds

_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_MARKS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪" + _QUOTES
_BEFORE, _BEHIND, _HYPHENS = set(_MARKS + "§%=—–+"), set(_MARKS + "%—–"), set("-–—~")
BEFORE, BEHIND, HYPHEN, UPPER, DIGIT, QUOTE = 1, 2, 4, 8, 16, 32
"""What spaCy's English tokenizer (3.8, lang/punctuation.py) tells apart, as bits: marks that end a word before or behind
them, hyphens, upper case, digits, quotes."""


def _mark_kind(code: int) -> int:
    character = chr(code)
    category = unicodedata.category(character)
    is_icon = category == "So"
    is_currency = category == "Sc"
    return (
        (character in _BEFORE or is_icon or is_currency) * BEFORE
        | (character in _BEHIND or is_icon or is_currency) * BEHIND
        | (character in _HYPHENS) * HYPHEN
        | character.isupper() * UPPER
        | (character in "0123456789") * DIGIT
        | (character in _QUOTES) * QUOTE
    )


_mark_kinds_of = Kinds(_mark_kind)


def _shift(values: np.ndarray, by: int) -> np.ndarray:
    """The values so many places further on (by > 0) or before (by < 0)."""
    moved = np.zeros_like(values)
    if by > 0:
        moved[by:] = values[:-by]
    else:
        moved[:by] = values[-by:]
    return moved


def _of_chunks(values: np.ndarray, first: np.ndarray, sizes: np.ndarray, nonspace: np.ndarray) -> np.ndarray:
    """A value of each chunk between spaces, at each of its characters."""
    spread = np.zeros(len(nonspace), values.dtype)
    spread[nonspace] = np.repeat(values[first], sizes)
    return spread


def words_and_marks(characters: Characters) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each word and mark, nearly as spaCy's English tokenizer cuts: it strips marks from both ends of what
    stands between spaces, then cuts at hyphens and the like between letters. Its lists of abbreviations, units of
    measure and smileys are left out.
    """
    codes, kinds = characters.codes, characters.kinds
    marks = _mark_kinds_of(codes)

    def are(kind: int) -> np.ndarray:
        return (marks & kind) != 0

    nonspace = (kinds & SPACE) == 0
    letter, digit, upper = (kinds & LETTER) != 0, are(DIGIT), are(UPPER)
    first = np.flatnonzero(nonspace & ~_shift(nonspace, 1))
    last = np.flatnonzero(nonspace & ~_shift(nonspace, -1))
    sizes = last - first + 1
    dot = codes == ord(".")
    dots = dot & (_shift(dot, 1) | _shift(dot, -1))
    lower = letter & ~upper

    # Marks at the beginning: nothing else stands between them and the space before.
    before = are(BEFORE) | dots
    before &= ~((codes == ord("+")) & _shift(digit, -1))
    others = np.cumsum(nonspace & ~before, dtype=np.int32)
    leading = before & (others == _of_chunks(others - (nonspace & ~before), first, sizes, nonspace))
    # And at the end, where a full stop is one behind small letters (not behind a single one), digits, marks and two capitals.
    single = lower & (~_shift(nonspace, 1) | _shift(leading, 1))
    stop = dot & _shift((lower & ~single) | digit | are(BEHIND) | (upper & _shift(upper, 1)), 1)
    behind = are(BEHIND) | dots | stop | ((codes == ord("+")) & _shift(digit, 1))
    others = np.cumsum(nonspace & ~behind, dtype=np.int32)
    trailing = behind & (others == _of_chunks(others, last, sizes, nonspace)) & ~leading
    alone = leading | trailing

    # Between letters.
    word = letter | digit
    hyphen = are(HYPHEN)
    run = np.zeros_like(hyphen)
    for length in (1, 2, 3):
        # At its first character: hyphens, and no more of them, between a letter or digit and a letter.
        found = hyphen & _shift(word, 1) & _shift(letter, -length)
        for place in range(1, length):
            found &= _shift(hyphen, -place)
        for place in range(length):
            run |= _shift(found, place) if place else found
    between = (codes == ord(",")) & _shift(letter, 1) & _shift(letter, -1)
    between |= (
        np.isin(codes, np.array([ord(c) for c in ":<>=/"], np.uint32)) & _shift(word, 1) & _shift(letter, -1)
    )
    between |= (
        np.isin(codes, np.array([ord(c) for c in "+*^-"], np.uint32)) & _shift(digit, 1) & _shift(digit, -1)
    )
    between |= dot & ~dots & _shift(lower | are(QUOTE), 1) & _shift(upper | are(QUOTE), -1)
    address = (codes == ord(":")) & (_shift(codes, -1) == ord("/")) & (_shift(codes, -2) == ord("/"))
    if address.any():
        # An address of the web is one word.
        in_chunk = np.add.reduceat(address, first, dtype=np.int64) if len(first) else first
        of_chunk = np.zeros(len(codes), bool)
        of_chunk[nonspace] = np.repeat(in_chunk > 0, sizes)
        between &= ~of_chunk
    between &= ~alone
    run &= ~alone
    inner_dots = dots & ~alone
    # Contractions: the apostrophe begins the second word, and the n of n't does.
    apostrophe = ((codes == ord("'")) | (codes == ord("’"))) & ~alone
    next_code, after = _shift(codes, -1) | 0x20, _shift(codes, -2) | 0x20
    ends_1 = ~_shift(nonspace, -2) | _shift(trailing, -2)
    ends_2 = ~_shift(nonspace, -3) | _shift(trailing, -3)
    second = apostrophe & ends_1 & np.isin(next_code, np.array([ord(c) for c in "sm"], np.uint32))
    for pair in ("ll", "re", "ve"):
        second |= apostrophe & ends_2 & (next_code == ord(pair[0])) & (after == ord(pair[1]))
    negation = apostrophe & ends_1 & (next_code == ord("t")) & ((_shift(codes, 1) | 0x20) == ord("n"))

    begins = nonspace & ~_shift(nonspace, 1)
    for cut in (alone, between, run, inner_dots):
        begins |= cut | (_shift(cut, 1) & nonspace)
    # Of a run of hyphens or dots the first one begins a word.
    for whole in (run, dots & (alone | inner_dots)):
        begins &= ~(whole & _shift(whole, 1))
    begins |= second | _shift(negation, -1)
    starts = np.flatnonzero(begins)
    ends = np.flatnonzero(nonspace & (_shift(begins, -1) | ~_shift(nonspace, -1))) + 1
    return starts, ends
