"""rubbish: drops what is no text."""

import re

from pydantic import Field

from tasks.text.judging import Documents, Fault, Faults, Filter

_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd\ue000-\uf8ff\U000f0000-\U0010fffd]+")
"""Control characters but for white space, escape and those that mending turns into letters; what stands for a character
that was lost; and characters without a meaning of their own (Unicode 15, section 23.5)."""
_ENCODED = re.compile(r"[A-Za-z0-9+/=_%-]{200,}")
"""A run that no prose has: base64, hexadecimal digits, and the like."""


_LEAST_DISTINCT = 8
"""Characters that differ in a run that encodes anything; a ruled line, or letters of a genome, have fewer."""


def _share(pattern: re.Pattern[str], text: str, least_distinct: int = 0) -> float:
    runs = (run for run in pattern.findall(text) if len(set(run)) >= least_distinct)
    return sum(map(len, runs)) / max(1, len(text))


class Rubbish(Filter):
    """Drop what is no text: binary data, and data written as letters."""

    max_unprintable: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Largest share of characters that are control characters or no characters.",
    )
    max_encoded: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Largest share of characters in runs of 200 and more without white space, as base64 has.",
    )

    def judge(self, documents: Documents) -> Faults:
        """What is wrong with each of the documents."""
        return [self._fault(text) for text in documents.texts]

    def _fault(self, text: str) -> Fault | None:
        unprintable, encoded = _share(_UNPRINTABLE, text), _share(_ENCODED, text, _LEAST_DISTINCT)
        if unprintable > self.max_unprintable:
            return Fault("characters that are no text", "max_unprintable", unprintable, self.max_unprintable)
        if encoded > self.max_encoded:
            return Fault("encoded data", "max_encoded", encoded, self.max_encoded)
        return None
