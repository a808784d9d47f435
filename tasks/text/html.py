"""What a page of HTML says, without what surrounds it."""

import re
from collections import Counter

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

from tasks.text.alarms import TooSlow, alarm

_MAX_DEPTH = 1000
"""The parser takes time in the square of the depth: 0.03 s at 1,000 open elements, minutes at 100,000."""
_MAX_OPTIONS = 5000
"""It takes time in the square of the options of a list, too: 0.3 s at 5,000."""
_SECONDS = 60.0
"""Longest time for the text of a page; resiliparse, which is one call, is heard of when that ends."""
_TAG = re.compile(rb"<(?:!--|(/?)([a-zA-Z][a-zA-Z0-9]*))")
_COMMENT_END = re.compile(rb"--!?>")
_RAW_TEXT = frozenset(b"script style textarea title xmp iframe noembed noframes".split())
"""Elements in which a tag is text (HTML Living Standard, section 13.2.5.1)."""
_FOREIGN = frozenset((b"svg", b"math"))
"""Where an element may close itself."""
_CLOSED_BY_OTHERS = frozenset(
    b"area base br col embed hr img input link meta param source track wbr p li dt dd tr td th thead tbody tfoot option "
    b"optgroup colgroup caption rp rt html head body".split()
)
"""Void elements, and those whose end tag may be left out (HTML Living Standard, section 13.1.2)."""
_LITTLE = 200


class BadPage(ValueError):
    """A page that cannot be read."""


def _deepest(page: bytes) -> int:
    """How many elements are open at once, as a browser counts."""
    opened: list[bytes] = []
    counts: Counter[bytes] = Counter()
    position, deepest, lowered = 0, 0, page.lower()
    while tag := _TAG.search(page, position):
        is_comment = tag[2] is None
        # A comment may end in its own beginning: <!--> and <!---> are empty ones (section 13.2.5.43).
        ending = _COMMENT_END.search(page, tag.start() + 2) if is_comment else None
        end = (ending.end() - 1 if ending else -1) if is_comment else page.find(b">", tag.end())
        if end < 0:
            break
        position = end + 1
        name = b"" if is_comment else tag[2].lower()
        if is_comment or name in _CLOSED_BY_OTHERS:
            continue
        if tag[1]:
            # An end tag closes its element with all in it, and nothing if there is none.
            while counts[name]:
                closed = opened.pop()
                counts[closed] -= 1
                if closed == name:
                    break
        elif name in _RAW_TEXT and not any(counts[foreign] for foreign in _FOREIGN):
            last = lowered.find(b"</" + name, position)
            if last < 0:
                break
            # The end tag is no element that was opened here, so it closes none.
            position = last + 2 + len(name)
        elif not (page[end - 1 : end] == b"/" and any(counts[foreign] for foreign in _FOREIGN)):
            opened.append(name)
            counts[name] += 1
            deepest = max(deepest, len(opened))
    return deepest


def decoded_page(page: bytes) -> str:
    """A page as text: UTF-8, or the encoding that it names, or that its bytes look like."""
    try:
        return page.decode("utf-8-sig")
    except UnicodeDecodeError:
        return bytes_to_str(page, detect_encoding(page) or "utf-8")


def whole_text(html: str) -> str:
    """All text of a page."""
    return extract_plain_text(html, alt_texts=False)


def text_of_page(page: bytes, extractor: str = "resiliparse") -> str:
    """The text of a page of HTML: what is in its main part, or all of it where hardly anything is there.

    Args:
        extractor: resiliparse; or trafilatura, which is stricter about what belongs to the main part, and takes
            twenty times as long.

    Raises:
        BadPage: if its elements are nested so deep that parsing it would take minutes, or it takes too long all the same.
    """
    depth, n_options = _deepest(page), page.lower().count(b"<option")
    if depth > _MAX_DEPTH:
        raise BadPage(f"HTML with {depth:,} elements inside each other")
    if n_options > _MAX_OPTIONS:
        raise BadPage(f"HTML with {n_options:,} options to choose from")
    html = decoded_page(page)
    try:
        with alarm(_SECONDS):
            return _extracted(html, extractor)
    except TooSlow:
        raise BadPage(f"HTML whose text takes longer than {_SECONDS:g} seconds to find") from None


def _extracted(html: str, extractor: str) -> str:
    if extractor == "trafilatura":
        from trafilatura import extract

        return extract(html, include_comments=False, deduplicate=False) or ""
    text = extract_plain_text(html, main_content=True, alt_texts=False)
    return text if len(text) >= _LITTLE else extract_plain_text(html, alt_texts=False)
