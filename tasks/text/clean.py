"""clean: mend the text, replace personal data, and drop what is not prose, with datatrove."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from model.base_config import Config
from model.errors import InputError
from tasks.engine.stage import Metrics, Shard, map_stage


class FixUnicode(Config):
    """Undo mojibake and stray control characters (ftfy)."""

    step: Literal["fix_unicode"] = Field("fix_unicode", description="Name of the step.")


class GopherQuality(Config):
    """Drop documents that do not look like prose (Rae et al. 2021, arXiv 2112.11446, table A1)."""

    step: Literal["gopher_quality"] = Field("gopher_quality", description="Name of the step.")
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
        2, ge=0, description="Fewest of the words the, be, to, of, and, that, have, with."
    )


class GopherRepetition(Config):
    """Drop documents that repeat themselves (Rae et al. 2021, arXiv 2112.11446, table A1)."""

    step: Literal["gopher_repetition"] = Field("gopher_repetition", description="Name of the step.")
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

    step: Literal["replace_personal_data"] = Field("replace_personal_data", description="Name of the step.")
    emails: bool = Field(True, description="Replace e-mail addresses.")
    ip_addresses: bool = Field(
        False, description="Replace public IPv4 addresses; takes four-part version numbers for addresses too."
    )
    email_replacement: str = Field("email@example.com", description="What stands for an e-mail address.")
    ip_replacement: str = Field("192.0.2.1", description="What stands for an address (RFC 5737).")


Step = Annotated[
    FixUnicode | GopherQuality | GopherRepetition | ReplacePersonalData, Field(discriminator="step")
]


class CleanConfig(Config):
    """Steps of cleaning, in order, and how long they may take."""

    max_document_seconds: float = Field(
        60.0,
        gt=0,
        description="Longest time that a step may take for one document, in seconds; then it is dropped, and named. "
        "Ordinary documents take milliseconds.",
    )
    steps: tuple[Step, ...] = Field(
        (FixUnicode(), GopherQuality(), GopherRepetition(), ReplacePersonalData()),
        description="Steps, in the order in which they are taken.",
    )


def _datatrove_steps(step: Step, recorder: Any) -> Any:
    """The datatrove blocks of a step. Blocks with words get ours: spaCy is slow and not installed."""
    from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
    from datatrove.pipeline.formatters.ftfy import FTFYFormatter
    from datatrove.pipeline.formatters.pii import PIIFormatter

    from tasks.text.steps import ReplaceEmails
    from tasks.text.words import RegexWords

    words: Any = RegexWords()
    match step:
        case FixUnicode():
            return [FTFYFormatter()]
        case GopherQuality():
            quality = GopherQualityFilter(
                min_doc_words=step.min_words,
                max_doc_words=step.max_words,
                min_avg_word_length=step.min_word_length,  # type: ignore[arg-type]
                max_avg_word_length=step.max_word_length,  # type: ignore[arg-type]
                max_symbol_word_ratio=step.max_symbol_ratio,
                max_bullet_lines_ratio=step.max_bullet_lines,
                max_ellipsis_lines_ratio=step.max_ellipsis_lines,
                max_non_alpha_words_ratio=step.min_alphabetic_words,
                min_stop_words=step.min_stop_words,
                exclusion_writer=recorder,
                language=words,
            )
            return [quality]
        case GopherRepetition():
            repetition = GopherRepetitionFilter(
                dup_line_frac=step.max_duplicate_lines,
                dup_para_frac=step.max_duplicate_paragraphs,
                dup_line_char_frac=step.max_duplicate_line_characters,
                dup_para_char_frac=step.max_duplicate_paragraph_characters,
                exclusion_writer=recorder,
                language=words,
            )
            return [repetition]
        case ReplacePersonalData():
            # One replacement each: datatrove rotates several, so that the text would depend on its neighbours.
            # Its pattern of e-mail addresses takes quadratic time, so that one is ours.
            ips = PIIFormatter(
                remove_emails=False, remove_ips=step.ip_addresses, ip_replacement=(step.ip_replacement,)
            )
            return [*([ReplaceEmails(step.email_replacement)] if step.emails else []), ips]


def _something_is_left(config: CleanConfig, metrics: Metrics) -> None:
    if not metrics.get("kept"):
        reasons = ", ".join(f"{reason} ({count})" for reason, count in metrics.get("dropped", {}).items())
        raise InputError(
            f"clean keeps none of {metrics.get('documents', 0)} documents: {reasons}; "
            "loosen clean.steps, or give it prose: the Gopher thresholds are made for web pages"
        )


@map_stage(libraries=("datatrove", "ftfy", "pyarrow"), check=_something_is_left)
def clean(config: CleanConfig, documents: Shard, out: Path) -> list[Any]:
    """datatrove steps from documents.parquet to documents.parquet (kept) and verdicts.parquet (all rows)."""
    from tasks.text.steps import DropEmpty, ReadShard, Recorder, TimeLimit, WriteKept

    dropped: dict[int, dict[str, Any]] = {}
    steps: list[Any] = [ReadShard(documents.path)]
    for step in config.steps:
        recorder = Recorder(step.step, dropped)
        steps += [
            TimeLimit(block, recorder, config.max_document_seconds)
            for block in _datatrove_steps(step, recorder)
        ]
        # A step may leave nothing of a text, and datatrove's filters divide by its length.
        steps.append(DropEmpty(Recorder("empty", dropped)))
    return [*steps, WriteKept(documents.path, out, dropped)]
