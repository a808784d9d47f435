"""Where text comes from: files, packages and datasets; which of them there are, and what their content is."""

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from model.base_config import Config
from tasks.engine.keys import LOCATION
from tasks.text.office import LIBRARIES

PACKAGE, DATASET = "package:", "dataset:"
_CODE = (
    "c cc cpp cs clj cxx dart el erl ex exs fs go h hh hpp hs java jl js jsx kt kts lisp lua m ml mli mm php pl pm ps1 py "
    "pyi r rb rs scala scm sh sql swift ts tsx zig"
)
CODE = frozenset(f".{name}" for name in _CODE.split())
"""Ends of the names of source code."""
KINDS = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex"), "text"),
    **dict.fromkeys(CODE, "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".jsonl", ".ndjson"), "lines"),
    **dict.fromkeys((".csv", ".tsv"), "table"),
    **dict.fromkeys((".warc", ".wet"), "archive"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
    **dict.fromkeys(LIBRARIES, "office"),
    ".json": "json",
    ".parquet": "parquet",
    ".mbox": "mailbox",
    ".eml": "message",
}
"""What a file is by the end of its name."""
COMPRESSED = (".gz", ".zst", ".bz2")
_WITHOUT_COMPRESSION = {"parquet", "arrow", "office", "mailbox", "message"}
"""Kinds that are compressed inside, or read from the middle."""

Cut = Literal["auto", "none", "pages", "headings", "paragraphs", "lines"]


PROFILES_OF_AUTO = ("plain", "web", "code")
"""What the profile auto may be."""


class Source(Config):
    """One place that text comes from."""

    path: str = Field(
        description="A file, a folder or a glob of text (.txt, .md, .rst, .html, source code), rows (.jsonl, .json, .csv, "
        ".tsv, .parquet, .arrow), archives of the web (.warc, .wet), mail (.mbox, .eml), .pdf, .docx, .pptx, .epub; text, rows and archives also as .gz, .zst or .bz2; the URL of such a file or folder (s3://, https://, hf://datasets/); package:NAME or package:NAME/GLOB for the files inside an installed "
        "Python package; dataset:NAME or dataset:FOLDER for a Hugging Face dataset.",
        json_schema_extra=LOCATION,
        min_length=1,
    )
    name: str = Field(
        "text",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Name of the source; begins the id of its documents.",
    )
    profile: Literal["auto", "plain", "company", "books", "web", "code", "none"] = Field(
        "auto",
        description="How its documents are cleaned: plain, whatever the language; company, with all personal data replaced; "
        "books, with none; web, as text from a crawl; code; none; auto, each file by its kind: archives of the web as web, "
        "source code as code, all else as plain.",
    )
    text_field: str | None = Field(
        None,
        description="Field or column that holds the text, a.b for a field b of a field a; if empty, text, or the only one of "
        "content, body, document, article, passage that a row has.",
    )
    max_rows: int | None = Field(
        None, ge=1, description="Rows that are read of each file, from its beginning; all if empty."
    )
    encoding: str | None = Field(
        None,
        description="Encoding of its text, rows and tables, such as latin-1 or shift_jis; UTF-8, or UTF-16 with a mark, if empty.",
    )
    extractor: Literal["resiliparse", "trafilatura"] = Field(
        "resiliparse",
        description="What finds the text of a page of HTML: resiliparse; or trafilatura, stricter, and ten times as slow.",
    )
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of its documents that is taken, chosen by a hash of their text: for a first try on much text.",
    )
    cut: Cut = Field(
        "auto",
        description="Where files of text are cut into documents: pages (form feeds, and lines of <|endoftext|>), headings (of "
        "Markdown), paragraphs (blank lines), lines, none; auto cuts files of more than 256 kB at pages if there are any, "
        "else at paragraphs.",
    )
    cut_bytes: int = Field(
        16_000,
        ge=100,
        description="Typical size of a document that is cut out at paragraphs or lines, in bytes.",
    )
    id_field: str = Field(
        "id",
        description="Field or column with a name of your own for a document, by which `why` finds it too.",
    )
    split: str = Field("train", description="Split of a Hugging Face dataset.")
    subset: str | None = Field(None, description="Configuration of a Hugging Face dataset.")

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                "".encode(encoding)
            except LookupError as error:
                raise ValueError(
                    f"{encoding!r} is no encoding that Python knows: try latin-1 or cp1252"
                ) from error
        return encoding

    @property
    def dataset(self) -> str | None:
        """Name or folder of the Hugging Face dataset that it is, if it is one."""
        return self.path.removeprefix(DATASET) if self.path.startswith(DATASET) else None

    @property
    def dataset_folder(self) -> Path | None:
        """Folder of the dataset that it is, if it is one on this computer."""
        folder = Path(self.dataset).expanduser() if self.dataset else None
        return folder if folder and folder.is_dir() else None


class IngestConfig(Config):
    """Where the text comes from, and how it is cut into shards."""

    sources: tuple[Source, ...] = Field(min_length=1, description="Sources, each with a name of its own.")
    shard_bytes: int | None = Field(
        None,
        ge=1_000,
        description="Typical size of a shard, in bytes of text; none is larger than 3 times this. If empty, 1, 4, 16 or 64 MB, "
        "so that there are 16 shards and more to share.",
    )
    max_document_bytes: int = Field(
        100_000_000,
        ge=1_000,
        description="Largest document, row or line, in bytes; a larger one is an error.",
    )
    max_error_rate: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Largest share of the bytes that cannot be read; above it the run stops.",
    )

    @field_validator("sources")
    @classmethod
    def _in_one_order(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        # The order in which they are read, so that the order in which they are written down changes nothing.
        return tuple(sorted(sources, key=lambda source: source.name))

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}: give each a name of its own")
        return self


READ = "text, Markdown, reStructuredText, HTML, source code, JSON, CSV, Parquet, Arrow, WARC, mail, PDF, Word, PowerPoint, EPUB"


class Kind(NamedTuple):
    """What a file is, by its name: one of the values of `KINDS`, its extension, and its compression or nothing."""

    of: str
    suffix: str
    compression: str


def kind_of(path: Path) -> Kind | None:
    """What a file is; None if it is nothing that is read."""
    name = path.name.lower()
    compression = next((end for end in COMPRESSED if name.endswith(end)), "")
    suffix = os.path.splitext(name.removesuffix(compression))[1]
    kind = KINDS.get(suffix)
    if kind is None or (compression and kind in _WITHOUT_COMPRESSION):
        return None
    return Kind(kind, suffix, compression)


def profile_of(source: Source, name: str) -> str:
    """How the documents of a file of a source are cleaned."""
    if source.profile != "auto":
        return source.profile
    kind = kind_of(Path(name))
    if kind is None:
        return "plain"
    return "web" if kind.of == "archive" else "code" if kind.suffix in CODE else "plain"


def relative_name(path: Path, root: Path) -> str:
    """Path of a file below its root; bytes that are not UTF-8 are spelt out, and so are backslashes, see `path_of_name`."""
    # By their spelling: of a million files `relative_to` alone takes ten seconds.
    whole, prefix = str(path), f"{root}{os.sep}"
    name = whole[len(prefix) :] if whole.startswith(prefix) else path.relative_to(root).as_posix()
    if name.isascii() and "\\" not in name:
        return name
    return name.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode()


_SPELT_OUT = re.compile(r"\\(\\|udc[0-9a-f]{2})")


def path_of_name(root: Path, name: str) -> Path:
    """The file that `relative_name` named."""
    if "\\" in name:
        name = _SPELT_OUT.sub(lambda spelt: "\\" if spelt[1] == "\\" else chr(int(spelt[1][1:], 16)), name)
    return root / name


def is_remote(path: str) -> bool:
    """Whether it is a URL, so that it is read through fsspec."""
    return "://" in path
