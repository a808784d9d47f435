"""source_code: drops code that nobody wrote: minified, generated, and data in the clothes of code."""

import re

from pydantic import Field

from tasks.text.judging import Documents, Fault, Faults, Filter

_GENERATED = re.compile(
    r"@generated|(auto[- ]?|machine[- ])generated|generated (by|from|code)|do not edit", re.I
)
_FIRST_LINES = 5


class SourceCode(Filter):
    """Drop code that is minified or generated (StarCoder: Li et al. 2023, arXiv 2305.06161, section 3.2)."""

    max_line_length: int = Field(1_000, ge=1, description="Longest line, in characters.")
    max_mean_line_length: float = Field(
        100, gt=0, description="Largest mean length of a line, in characters."
    )
    min_alphanumeric: float = Field(0.25, ge=0, le=1, description="Smallest share of letters and digits.")
    generated: bool = Field(
        True, description="Whether code that says in its first 5 lines that it is generated is dropped."
    )

    def judge(self, documents: Documents) -> Faults:
        """What is wrong with each of the documents."""
        return [self._fault(text) for text in documents.texts]

    def _fault(self, text: str) -> Fault | None:
        lines = text.splitlines() or [""]
        longest, mean = max(map(len, lines)), len(text) / len(lines)
        if longest > self.max_line_length:
            return Fault("a line of code too long", "max_line_length", longest, self.max_line_length)
        if mean > self.max_mean_line_length:
            return Fault("lines of code too long", "max_mean_line_length", mean, self.max_mean_line_length)
        alphanumeric = sum(map(str.isalnum, text)) / max(1, len(text))
        if alphanumeric < self.min_alphanumeric:
            return Fault(
                "too few letters and digits", "min_alphanumeric", alphanumeric, self.min_alphanumeric
            )
        if self.generated and _GENERATED.search("\n".join(lines[:_FIRST_LINES])):
            return Fault("generated code", "generated", None, None)
        return None
