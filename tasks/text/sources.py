"""Where text comes from: files, packages and datasets; which of them there are, and what their content is."""

import glob
import importlib.util
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from model.base_config import Config
from model.errors import InputError
from tasks.engine.keys import LOCATION
from tasks.engine.sources import is_regular, walk

PACKAGE, DATASET = "package:", "dataset:"
_CODE = (
    "c cc cpp cs clj cxx dart el erl ex exs fs go h hh hpp hs java jl js jsx kt kts lisp lua m ml mli mm php pl pm ps1 py "
    "pyi r rb rs scala scm sh sql swift ts tsx zig"
)
KINDS = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex"), "text"),
    **dict.fromkeys((f".{name}" for name in _CODE.split()), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".jsonl", ".ndjson"), "lines"),
    **dict.fromkeys((".csv", ".tsv"), "table"),
    ".json": "json",
    ".parquet": "parquet",
}
"""What a file is by the end of its name."""
COMPRESSED = (".gz", ".zst")

Cut = Literal["auto", "none", "pages", "headings", "paragraphs", "lines"]


class Source(Config):
    """One place that text comes from."""

    path: str = Field(
        description="A file, a folder or a glob of text (.txt, .md, .rst, .html, source code), rows (.jsonl, .json, .csv, "
        ".tsv, .parquet), each also as .gz or .zst; the URL of such a file or folder (s3://, https://, hf://datasets/); package:NAME or package:NAME/GLOB for the files inside an installed "
        "Python package; dataset:NAME or dataset:FOLDER for a Hugging Face dataset.",
        json_schema_extra=LOCATION,
        min_length=1,
    )
    name: str = Field(
        "text",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Name of the source; begins the id of its documents.",
    )
    profile: Literal["plain", "web", "none"] = Field(
        "plain",
        description="How its documents are cleaned: plain, whatever the language; web, as English text from a crawl; none.",
    )
    text_field: str | None = Field(
        None,
        description="Field or column that holds the text; if empty, text, or the only one of content, body, document, "
        "article, passage that a row has.",
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


READ = "text, Markdown, reStructuredText, HTML, source code, JSON, CSV, Parquet"


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
    if kind is None or (compression and kind == "parquet"):
        return None
    return Kind(kind, suffix, compression)


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


@dataclass(frozen=True)
class Files:
    """What a source of files consists of.

    Attributes:
        paths: files that are read, sorted by their path below `root`.
        skipped: what is not: its path below `root`, and why.
    """

    root: Path
    paths: tuple[Path, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def by_name(self) -> dict[str, Path]:
        """The files that are read by their path below `root`."""
        return {relative_name(path, self.root): path for path in self.paths}


def _no_kind(path: Path) -> str:
    return f"not a kind of file that is read ({path.suffix.lower() or 'no extension'})"


def is_remote(path: str) -> bool:
    """Whether it is a URL, so that it is read through fsspec."""
    return "://" in path


def _below(root: Path, candidates: Callable[[Callable[[Path, str], None]], Iterable[Path]]) -> Files:
    """Those of the candidates that are read, and what is left out."""
    skipped: list[tuple[str, str]] = []

    def skip(path: Path, why: str) -> None:
        skipped.append((relative_name(path, root) if path.is_relative_to(root) else str(path), why))

    paths = []
    for path in candidates(skip):
        if kind_of(path):
            paths.append(path)
        else:
            skip(path, _no_kind(path))
    paths.sort(key=str)  # all begin with the root
    return Files(root, tuple(paths), tuple(sorted(skipped)))


def count_skipped(files: "Files | Listing") -> list[tuple[str, int]]:
    """How many files are left out for which reason, the commonest first."""
    return Counter(why for _, why in files.skipped).most_common()


def _package_root(path: str) -> tuple[Path, str]:
    """Folder of an installed package, and the glob below it."""
    name, _, pattern = path.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"ingest.sources: the package {name!r} of {path!r} is not installed: pip install {name}"
        )
    return Path(next(iter(spec.submodule_search_locations))), pattern


def _package_files(path: str) -> Files:
    root, pattern = _package_root(path)
    return _below(root, partial(_matches, root, pattern) if pattern else partial(walk, root))


def _glob_root(location: Path) -> Path:
    magic = next(i for i, part in enumerate(location.parts) if glob.has_magic(part))
    return Path(*location.parts[:magic]) if magic else Path(".")


def _matches(root: Path, pattern: str, skip: Callable[[Path, str], None]) -> Iterator[Path]:
    """Regular files below `root` that fit a glob."""
    for match in sorted(
        Path(name) for name in glob.glob(str(Path(glob.escape(str(root))) / pattern), recursive=True)
    ):
        if is_regular(match):
            yield match
        elif not match.is_dir():
            skip(match, "not a regular file")


def _files_at(path: str) -> Files:
    """Root and files of a file, a folder or a glob."""
    try:
        location = Path(path).expanduser()
        is_there, is_file, is_folder = location.exists(), location.is_file(), location.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"ingest.sources: {path[:100]!r} cannot be a path: {error}") from error
    if is_file:
        if kind_of(location) is None:
            raise InputError(
                f"ingest.sources: {path!r} is no kind of file that is read ({READ}): convert it to text"
            )
        return Files(location.parent, (location,), ())
    if is_folder:
        return _below(location, partial(walk, location))
    if is_there:
        raise InputError(
            f"ingest.sources: {path!r} is neither a file nor a folder: a pipe or a device never ends"
        )
    if glob.has_magic(path):
        root = _glob_root(location)
        return _below(root, partial(_matches, root, str(location.relative_to(root))))
    raise InputError(
        f"ingest.sources: there is no file or folder {path!r} ({location.absolute()}): correct the path"
    )


def files_of(source: Source) -> Files:
    """The files of a source of files.

    Raises:
        InputError: if there are none.
    """
    files = _package_files(source.path) if source.path.startswith(PACKAGE) else _files_at(source.path)
    if not files.paths:
        raise InputError(_nothing_at(source.path, files.skipped))
    return files


def _nothing_at(path: str, skipped: Sequence[tuple[str, str]]) -> str:
    counts = Counter(why for _, why in skipped).most_common()
    there = "; there are " + ", ".join(f"{count} {why}" for why, count in counts) if counts else ""
    return f"ingest.sources: {path!r} holds no file that is read ({READ}){there}"


def root_of(source: Source) -> Path:
    """The folder that the names of a source's files count from.

    Raises:
        InputError: if it is not there.
    """
    if source.path.startswith(PACKAGE):
        return _package_root(source.path)[0]
    location = Path(source.path).expanduser()
    if location.is_file():
        return location.parent
    if not location.is_dir() and not glob.has_magic(source.path):
        raise InputError(
            f"ingest.sources: there is no file or folder {source.path!r} on {socket.gethostname()}"
        )
    return location if location.is_dir() else _glob_root(location)


class Entry(NamedTuple):
    """A file of a source: its path below it, its size in bytes, where it is, and elsewhere than here what says its content.

    A file here that cannot be looked at has the size -1.
    """

    name: str
    size: int
    path: Path | None
    version: str = ""


@dataclass(frozen=True)
class Listing:
    """What a source consists of, here or elsewhere; `skipped` as in `Files`."""

    entries: tuple[Entry, ...]
    skipped: tuple[tuple[str, str], ...]


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # reading it will fail in the same way, and be counted and named there


def list_source(source: Source) -> Listing:
    """The files of a source that is no dataset, sorted by name; a dataset has none.

    Raises:
        InputError: if there are none, or they cannot be listed.
    """
    if source.dataset is not None:
        return Listing((), ())
    if is_remote(source.path):
        from tasks.text.remote import list_remote

        entries, skipped = list_remote(source.path)
        kept = [Entry(name, size, None, version) for name, size, version in entries if kind_of(Path(name))]
        skipped += [(name, _no_kind(Path(name))) for name, _, _ in entries if not kind_of(Path(name))]
        if not kept:
            raise InputError(_nothing_at(source.path, skipped))
        return Listing(tuple(sorted(kept)), tuple(sorted(skipped)))
    files = files_of(source)
    return Listing(
        tuple(Entry(name, _size_of(path), path) for name, path in files.by_name.items()), files.skipped
    )


def hub_commit(name: str) -> str | None:
    """The commit of a dataset of the Hugging Face hub.

    Raises:
        InputError: if the hub does not tell.
    """
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name).sha
    except Exception as error:
        raise InputError(
            f"ingest.sources: there is no folder {name!r}, and the Hugging Face hub could not tell of a dataset of that "
            f"name ({type(error).__name__}): correct the name or connect to the network"
        ) from error


_EXPANDS = {".gz": 4, ".zst": 4, ".parquet": 3}
"""How much larger the text of a compressed file is, roughly."""


def text_bytes_in(entry: Entry) -> int:
    """How much text a file holds, roughly, by its name and size."""
    return max(0, entry.size) * _EXPANDS.get(os.path.splitext(entry.name)[1].lower(), 1)


def typical_shard_bytes(config: IngestConfig, listings: Iterable[Listing]) -> int:
    """Typical size of a shard, in bytes: what the recipe says, or what gives 16 shards and more, in powers of four.

    Few sizes only, so that an added file changes how the others are cut when the text has grown fourfold, and never else.

    Args:
        listings: of each source.
    """
    if config.shard_bytes:
        return config.shard_bytes
    if any(source.dataset is not None for source in config.sources):
        return 64_000_000
    total = sum(
        source.share * sum(map(text_bytes_in, listing.entries))
        for source, listing in zip(config.sources, listings, strict=True)
    )
    return next((size for size in (64_000_000, 16_000_000, 4_000_000) if total >= 16 * size), 1_000_000)


def shard_bytes_of(config: IngestConfig) -> int:
    """Typical size of a shard, in bytes; see `typical_shard_bytes`."""
    return typical_shard_bytes(config, map(list_source, config.sources))
