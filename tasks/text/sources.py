"""Where text comes from: files, packages and datasets; which of them there are, and what their content is."""

import glob
import importlib.util
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from model.base_config import Config
from model.errors import InputError
from tasks.engine.keys import LOCATION
from tasks.engine.sources import SourceDigests, walk

PACKAGE, DATASET = "package:", "dataset:"
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


class Source(Config):
    """One place that text comes from."""

    path: str = Field(
        description="A file, a folder or a glob of .txt, .jsonl(.gz, .zst) and .parquet files; package:NAME for the files "
        "inside an installed Python package; dataset:NAME or dataset:FOLDER for a Hugging Face dataset.",
        json_schema_extra=LOCATION,
        min_length=1,
    )
    name: str = Field(
        "text",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Name of the source; begins the id of its documents.",
    )
    text_field: str = Field("text", description="Field or column that holds the text.")
    id_field: str = Field(
        "id", description="Field or column that names a document; if absent, its file and row do."
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
    shard_bytes: int = Field(
        64_000_000,
        ge=1_000,
        description="Typical size of a shard, in bytes of text; none is larger than 3 times this.",
    )
    max_error_rate: float = Field(
        0.05, ge=0, le=1, description="Largest share of unreadable files or rows; above it the run stops."
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


def suffix_of(path: Path) -> str | None:
    """Which of `SUFFIXES` a file has; None if none."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def relative_name(path: Path, root: Path) -> str:
    """Path of a file below its root; a name that is not UTF-8 is kept readable."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()


def _package_files(name: str, path: str) -> tuple[Path, list[Path]]:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"ingest.sources: the package {name!r} of {path!r} is not installed: pip install {name}"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    return root, list(walk(root))


def _files_at(path: str) -> tuple[Path, list[Path]]:
    """Root and files of a file, a folder or a glob."""
    try:
        location = Path(path).expanduser()
        is_file, is_folder = location.is_file(), location.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"ingest.sources: {path[:100]!r} cannot be a path: {error}") from error
    if is_file:
        if suffix_of(location) is None:
            raise InputError(f"ingest.sources: {path!r} ends in none of {', '.join(SUFFIXES)}")
        return location.parent, [location]
    if is_folder:
        return location, list(walk(location))
    if glob.has_magic(path):
        magic = next(i for i, part in enumerate(location.parts) if glob.has_magic(part))
        root = Path(*location.parts[:magic]) if magic else Path(".")
        matches = map(Path, glob.glob(str(location), recursive=True))
        return root, [match for match in matches if not match.is_dir()]
    raise InputError(
        f"ingest.sources: there is no file or folder {path!r} ({location.absolute()}): correct the path"
    )


def files_of(source: Source) -> tuple[Path, list[Path]]:
    """Root folder and files of a source of files, sorted by relative path.

    Raises:
        InputError: if there are none.
    """
    if source.path.startswith(PACKAGE):
        root, paths = _package_files(source.path.removeprefix(PACKAGE), source.path)
    else:
        root, paths = _files_at(source.path)
    files = sorted(
        (path for path in paths if suffix_of(path)), key=lambda path: path.relative_to(root).as_posix()
    )
    if not files:
        raise InputError(
            f"ingest.sources: {source.path!r} holds no file that ends in one of {', '.join(SUFFIXES)}"
        )
    return root, files


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


def fingerprint_sources(config: IngestConfig, digests: SourceDigests) -> list[Any]:
    """What the sources hold: files by relative path, size and SHA-256; a hub dataset by commit.

    Raises:
        InputError: if a source is missing or empty.
    """
    prints: list[Any] = []
    for source in config.sources:
        if source.dataset_folder:
            prints.append({"dataset": digests.files(source.dataset_folder, walk(source.dataset_folder))})
        elif source.dataset is not None:
            prints.append({"dataset": source.dataset, "commit": hub_commit(source.dataset)})
        else:
            root, files = files_of(source)
            prints.append({"files": digests.files(root, files)})
    return prints
