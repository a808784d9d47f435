"""repeated_lines: removes lines that come back in document after document, such as menus, footers and notices."""

from functools import cache
from pathlib import Path

from pydantic import Field

from tasks.text.judging import Mender, Step


class RepeatedLines(Step):
    """Remove lines that are in many documents. They are counted first, over all of the text."""

    min_documents: int = Field(
        20, ge=2, description="Documents that must have a line for it to be removed from all of them."
    )
    min_characters: int = Field(
        12, ge=1, description="Shorter lines stay, in characters: a bracket or a yes is nobody's boilerplate."
    )
    max_removed: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Largest share of a text that may go. A document that would lose more stays as it is: it is a copy as a "
        "whole, which is for deduplicate to say.",
    )


@cache
def _hashes(path: Path) -> frozenset[int]:
    import numpy as np

    return frozenset(np.load(path).tolist())


class RemoveLines(Mender):
    """The step, once the lines have been counted."""

    how: RepeatedLines
    found: Path = Field(description="File of the hashes of the lines that are removed.")

    def mend(self, text: str) -> str:
        """The text without them."""
        from tasks.text.lines import hash_line, lines_of

        hashes = _hashes(self.found)
        if not hashes:
            return text
        gone = {line for line in lines_of(text, self.how.min_characters) if hash_line(line) in hashes}
        if not gone:
            return text
        left = "\n".join(line for line in text.split("\n") if line not in gone)
        return left if len(left) >= (1 - self.how.max_removed) * len(text) else text
