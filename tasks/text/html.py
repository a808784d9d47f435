"""What a page of HTML says, without what surrounds it."""

import re

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

_MAX_DEPTH = 1000
"""The parser takes time in the square of the depth: 0.03 s at 1,000 open elements, minutes at 100,000."""
_TAG = re.compile(rb"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_CLOSED_BY_OTHERS = frozenset(
    b"area base br col embed hr img input link meta param source track wbr p li dt dd tr td th thead tbody tfoot option "
    b"optgroup colgroup caption rp rt html head body".split()
)
"""Void elements, and those whose end tag may be left out (HTML Living Standard, section 13.1.2)."""
_LITTLE = 200


class BadPage(ValueError):
    """A page that cannot be read."""


def _depth(page: bytes) -> int:
    depth = deepest = 0
    for end, name in _TAG.findall(page):
        if name.lower() not in _CLOSED_BY_OTHERS:
            depth += -1 if end else 1
            deepest = max(deepest, depth)
    return deepest


def text_of_page(page: bytes) -> str:
    """The text of a page of HTML: what is in its main part, or all of it where hardly anything is there.

    Raises:
        BadPage: if its elements are nested so deep that parsing it would take minutes.
    """
    depth = _depth(page)
    if depth > _MAX_DEPTH:
        raise BadPage(f"HTML with {depth:,} elements inside each other")
    try:
        html = page.decode("utf-8-sig")
    except UnicodeDecodeError:
        html = bytes_to_str(page, detect_encoding(page) or "utf-8")
    text = extract_plain_text(html, main_content=True, alt_texts=False)
    return text if len(text) >= _LITTLE else extract_plain_text(html, alt_texts=False)
