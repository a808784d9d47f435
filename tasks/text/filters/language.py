"""language: keeps documents in some languages."""

from pydantic import Field, field_validator

from tasks.text.judging import Documents, Fault, Faults, Filter


class Language(Filter):
    """Keep documents in some languages (fastText's lid.176). Source code is in none: it takes the profile code."""

    keep: tuple[str, ...] = Field(
        ("en",),
        min_length=1,
        description="Codes of the languages that are kept, such as en, de, zh (ISO 639-1).",
    )
    min_probability: float = Field(
        0.65,
        ge=0,
        le=1,
        description="Smallest probability of the language (0.65 in FineWeb, arXiv 2406.17557, section 3.3).",
    )

    @field_validator("keep")
    @classmethod
    def _in_one_order(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(keep)))

    def judge(self, documents: Documents) -> Faults:
        """What is wrong with each of the documents."""
        faults: Faults = []
        for language, probability in documents.languages:
            if language not in self.keep:
                faults.append(Fault(f"language {language or 'unknown'}", "keep", probability, None))
            elif probability < self.min_probability:
                faults.append(
                    Fault("language in doubt", "min_probability", probability, self.min_probability)
                )
            else:
                faults.append(None)
        return faults
