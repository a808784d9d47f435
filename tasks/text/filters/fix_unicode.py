"""fix_unicode: mends broken characters, with ftfy as datatrove sets it up."""

import re
from functools import cache
from typing import Any

from tasks.text.judging import Mender

_MAY_CHANGE = re.compile(r"[^\t\n\f\r -%'-~]")
"""What ftfy leaves alone is ASCII without control characters and without the & of an entity of HTML."""


@cache
def _blocks() -> tuple[Any, Any]:
    """What mends lines before and after the first <."""
    from datatrove.pipeline.formatters.ftfy import FTFYFormatter

    return FTFYFormatter(), FTFYFormatter(unescape_html=False)


class FixUnicode(Mender):
    """Undo mojibake and stray control characters (ftfy)."""

    def mend(self, text: str) -> str:
        """The text, each line as ftfy mends it; the others, nine of ten in English, need not be looked at.

        Entities are resolved up to the first line with a <, as ftfy does, since what follows may be HTML.
        """
        hit = _MAY_CHANGE.search(text)
        if hit is None:
            return text
        markup = text.find("<")
        if markup < 0:
            markup = len(text)
        out: list[str] = []
        position = 0
        while hit:
            first = text.rfind("\n", position, hit.start()) + 1 or position
            last = text.find("\n", hit.end()) + 1 or len(text)
            block = _blocks()[0 if first <= markup else 1]
            out += (text[position:first], block.format(text[first:last]))
            position = last
            hit = _MAY_CHANGE.search(text, position)
        return "".join((*out, text[position:]))
