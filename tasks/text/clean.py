"""clean: mend the text, replace personal data, and drop what is no text to learn from, with datatrove."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

from model.base_config import Config
from model.errors import InputError
from tasks.engine.stage import Metrics, Parts, Shard, map_stage


class Rubbish(Config):
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


class FixUnicode(Config):
    """Undo mojibake and stray control characters (ftfy)."""


class Repetition(Config):
    """Drop documents that say the same over and over, whatever their language."""

    min_distinct: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Smallest share of a document's pieces of 16 characters that are not in it before.",
    )
    min_characters: int = Field(
        1_000, ge=0, description="Length from which a document is judged, in characters."
    )


class GopherQuality(Config):
    """Drop documents that do not look like English prose (Rae et al. 2021, arXiv 2112.11446, table A1)."""

    min_words: int = Field(50, ge=0, description="Fewest words of a document.")
    max_words: int = Field(100_000, ge=1, description="Most words of a document.")
    min_word_length: float = Field(3, ge=0, description="Smallest mean length of a word, in characters.")
    max_word_length: float = Field(10, gt=0, description="Largest mean length of a word, in characters.")
    max_symbol_ratio: float = Field(0.1, ge=0, description="Most hashes or ellipses for each word.")
    max_bullet_lines: float = Field(
        0.9, ge=0, le=1, description="Largest share of lines that begin with a bullet."
    )
    max_ellipsis_lines: float = Field(
        0.3, ge=0, le=1, description="Largest share of lines that end in an ellipsis."
    )
    min_alphabetic_words: float = Field(0.8, ge=0, le=1, description="Smallest share of words with a letter.")
    min_stop_words: int = Field(
        2,
        ge=0,
        description="Fewest of the words the, be, to, of, and, that, have, with; 0 for other languages than English.",
    )


class GopherRepetition(Config):
    """Drop documents that repeat themselves (Rae et al. 2021, arXiv 2112.11446, table A1)."""

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


class ReplacePersonalData(Config):
    """Replace e-mail addresses and public IPv4 addresses."""

    emails: bool = Field(True, description="Replace e-mail addresses.")
    ip_addresses: bool = Field(
        False, description="Replace public IPv4 addresses; takes four-part version numbers for addresses too."
    )
    email_replacement: str = Field("email@example.com", description="What stands for an e-mail address.")
    ip_replacement: str = Field("192.0.2.1", description="What stands for an address (RFC 5737).")


def _switched(value: Any) -> Any:
    """on and off are true and false in YAML: a step as it is, or none."""
    return {} if value is True else None if value is False else value


_Step = TypeVar("_Step", bound=Config)
Switched = Annotated[_Step | None, BeforeValidator(_switched)]
"""A step of cleaning: its fields, on (as they are), or off."""

STEPS_OF_PROFILE = {
    "plain": ("rubbish", "fix_unicode", "repetition", "replace_personal_data"),
    "web": ("rubbish", "fix_unicode", "gopher_quality", "gopher_repetition", "replace_personal_data"),
    "none": (),
}
"""The steps that the documents of a source take, by its profile, in their order."""


class CleanConfig(Config):
    """Steps of cleaning, each on, off, or with its fields, for the sources whose profile has them."""

    rubbish: Switched[Rubbish] = Field(Rubbish(), description="What is no text is dropped.")
    fix_unicode: Switched[FixUnicode] = Field(FixUnicode(), description="Broken characters are mended.")
    repetition: Switched[Repetition] = Field(
        Repetition(), description="Pure repetition is dropped; for sources with profile plain."
    )
    gopher_quality: Switched[GopherQuality] = Field(
        GopherQuality(),
        description="What does not look like English prose is dropped; for sources with profile web.",
    )
    gopher_repetition: Switched[GopherRepetition] = Field(
        GopherRepetition(), description="What repeats itself is dropped; for sources with profile web."
    )
    replace_personal_data: Switched[ReplacePersonalData] = Field(
        ReplacePersonalData(), description="Personal data are replaced."
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


def _action(name: str, step: Any) -> tuple[str, Any, Any]:
    """A step by its name, with what judges a text and what mends it. The blocks are datatrove's."""
    from datatrove.pipeline.formatters.ftfy import FTFYFormatter
    from datatrove.pipeline.formatters.pii import PIIFormatter

    from tasks.text import judges
    from tasks.text.steps import replace_emails

    match step:
        case FixUnicode():
            return name, None, FTFYFormatter().format
        case ReplacePersonalData():
            # One replacement each: datatrove rotates several, so that the text would depend on its neighbours.
            # Its pattern of e-mail addresses takes quadratic time, so that one is ours.
            ips = PIIFormatter(
                remove_emails=False, remove_ips=step.ip_addresses, ip_replacement=(step.ip_replacement,)
            )

            def mend(text: str) -> str:
                return ips.format(replace_emails(text, step.email_replacement) if step.emails else text)

            return name, None, mend
    return name, getattr(judges, name)(step), None


def how_to_loosen(field: str) -> str:
    """What a person can do about a field of cleaning that drops too much."""
    section, step, *_ = field.split(".")
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


@map_stage(libraries=("datatrove", "ftfy", "numpy", "pyarrow"), finish=_enough_is_left)
def clean(config: CleanConfig, documents: Shard, out: Path) -> list[Any]:
    """datatrove steps from documents.parquet to documents.parquet (kept) and verdicts.parquet (all rows)."""
    from tasks.text.steps import Clean, ReadShard, WriteKept

    actions = {
        name: _action(name, step)
        for names in STEPS_OF_PROFILE.values()
        for name in names
        if (step := getattr(config, name)) is not None
    }
    profiles = {
        profile: [actions[name] for name in names if name in actions]
        for profile, names in STEPS_OF_PROFILE.items()
    }
    cleaning = Clean(profiles, config.max_document_seconds)
    return [ReadShard(documents.path), cleaning, WriteKept(documents.path, out, cleaning.dropped)]
