"""ingest: a snapshot of the raw text, as shards of documents."""

import glob
import gzip
import importlib.util
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from model.base_config import Config
from tasks.documents.files import (
    DOCUMENTS,
    DOCUMENTS_SCHEMA,
    TEXT_DIGESTS,
    TEXT_DIGESTS_SCHEMA,
    document_digest,
    sorted_json,
    text_digest,
    write_table,
)  # fmt: skip
from tasks.errors import InputError
from tasks.progress import progress
from tasks.stage import Metrics, stage
from tasks.store.keys import LOCATION
from tasks.store.sources import SourceDigests

PACKAGE, DATASET = "package:", "dataset:"
_SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


class Source(Config):
    """One place that text comes from."""

    path: str = Field(
        description="A file, a folder or a glob of .txt, .jsonl(.gz, .zst) and .parquet files; package:NAME for the files "
        "inside an installed Python package; dataset:NAME or dataset:FOLDER for a Hugging Face dataset.",
        json_schema_extra=LOCATION,
        min_length=1,
    )
    name: str = Field("text", pattern=r"^[A-Za-z0-9_.-]+$", description="Name of the source; begins the id of its documents.")
    text_field: str = Field("text", description="Field or column that holds the text.")
    id_field: str = Field("id", description="Field or column that names a document; if absent, its file and row do.")
    split: str = Field("train", description="Split of a Hugging Face dataset.")
    subset: str | None = Field(None, description="Configuration of a Hugging Face dataset.")


class IngestConfig(Config):
    """Where the text comes from, and how it is cut into shards."""

    sources: tuple[Source, ...] = Field(min_length=1, description="Sources, each with a name of its own.")
    shard_bytes: int = Field(
        64_000_000, ge=1_000, description="Typical size of a shard, in bytes of text; none is larger than 3 times this."
    )
    max_error_rate: float = Field(
        0.05, ge=0, le=1, description="Largest share of unreadable files or rows; above it the run stops."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}: give each a name of its own")
        return self


@dataclass(frozen=True)
class Record:
    """A document, or the reason why there is none."""

    where: str
    row: int | None
    text: str | None = None
    identifier: str | None = None
    metadata: dict[str, Any] | None = None
    error: str | None = None


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), None)


def _files(source: Source) -> tuple[Path, list[Path]]:
    """Root folder and files of a source of files, sorted by relative path.

    Raises:
        InputError: if there are none.
    """
    if source.path.startswith(PACKAGE):
        name = source.path.removeprefix(PACKAGE)
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"ingest.sources: the package {name!r} of {source.path!r} is not installed: pip install {name}")
        root = Path(next(iter(spec.submodule_search_locations)))
        found = list(_walk(root))
    else:
        try:
            location = Path(source.path).expanduser()
            is_file, is_folder = location.is_file(), location.is_dir()
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"ingest.sources: {source.path[:100]!r} cannot be a path: {error}") from error
        if is_file:
            root, found = location.parent, [location]
            if _suffix(location) is None:
                raise InputError(f"ingest.sources: {source.path!r} ends in none of {', '.join(_SUFFIXES)}")
        elif is_folder:
            root, found = location, list(_walk(location))
        elif glob.has_magic(source.path):
            fixed = location.parts
            magic = next(i for i, part in enumerate(fixed) if glob.has_magic(part))
            root = Path(*fixed[:magic]) if magic else Path(".")
            found = [path for name in glob.glob(str(location), recursive=True) if not (path := Path(name)).is_dir()]
        else:
            raise InputError(
                f"ingest.sources: there is no file or folder {source.path!r} ({location.absolute()}): correct the path"
            )
    files = sorted((path for path in found if _suffix(path)), key=lambda path: path.relative_to(root).as_posix())
    if not files:
        raise InputError(f"ingest.sources: {source.path!r} holds no file that ends in one of {', '.join(_SUFFIXES)}")
    return root, files


def _walk(root: Path) -> Iterator[Path]:
    """Everything below a folder that is neither a folder nor hidden, through links too; a link that points nowhere is among it."""
    seen: set[tuple[int, int]] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(folder) / name for name in files if not name.startswith("."))


def _dataset_folder(source: Source) -> Path | None:
    location = Path(source.path.removeprefix(DATASET)).expanduser()
    return location if location.is_dir() else None


def fingerprint_sources(config: IngestConfig, digests: SourceDigests) -> list[Any]:
    """What the sources hold: files by relative path, size and SHA-256; a hub dataset by commit.

    Raises:
        InputError: if a source is missing or empty.
    """
    found: list[Any] = []
    for source in sorted(config.sources, key=lambda source: source.name):
        if source.path.startswith(DATASET):
            folder = _dataset_folder(source)
            if folder:
                found.append({"dataset": digests.files(folder, _walk(folder))})
            else:
                found.append({"dataset": source.path.removeprefix(DATASET), "commit": _hub_commit(source)})
        else:
            root, files = _files(source)
            found.append({"files": digests.files(root, files)})
    return found


def _hub_commit(source: Source) -> str | None:
    from huggingface_hub import HfApi

    name = source.path.removeprefix(DATASET)
    try:
        return HfApi().dataset_info(name).sha
    except Exception as error:
        raise InputError(
            f"ingest.sources: there is no folder {name!r}, and the Hugging Face hub could not tell of a dataset of that "
            f"name ({type(error).__name__}): correct the name or connect to the network"
        ) from error


class _ZstandardFrames(io.RawIOBase):
    """The content of a file of Zstandard frames; unlike zstandard's own reader it minds an end in the middle of one."""

    def __init__(self, raw: Any) -> None:
        import zstandard

        self.raw, self.new_frame = raw, zstandard.ZstdDecompressor().decompressobj
        self.frame, self.content = self.new_frame(), b""
        self.is_inside = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; 0 at the end.

        Raises:
            EOFError: if the file ends inside a frame.
        """
        while not self.content:
            data = self.frame.unused_data or self.raw.read(1 << 16)
            if not data:
                if self.is_inside:
                    raise EOFError("the file ends inside a frame")
                return 0
            if self.frame.eof:
                self.frame = self.new_frame()
            self.content = self.frame.decompress(data)
            self.is_inside = not self.frame.eof
        count = min(len(buffer), len(self.content))
        buffer[:count], self.content = self.content[:count], self.content[count:]
        return count


def _open_lines(path: Path, suffix: str) -> Iterator[bytes]:
    with path.open("rb") as raw:
        if suffix.endswith(".gz"):
            stream: Any = gzip.GzipFile(fileobj=raw)
        elif suffix.endswith(".zst"):
            stream = io.BufferedReader(_ZstandardFrames(raw))  # type: ignore[type-var]
        else:
            stream = raw
        yield from stream


def _from_mapping(source: Source, where: str, row: int, value: Any) -> Record:
    if not isinstance(value, dict):
        return Record(where, row, error="not an object with fields")
    text = value.get(source.text_field)
    if not isinstance(text, str):
        kind = "is missing" if source.text_field not in value else f"is {type(text).__name__}, not text"
        return Record(where, row, error=f"field {source.text_field!r} {kind}")
    identifier = value.get(source.id_field)
    metadata = {name: item for name, item in value.items() if name not in (source.text_field, source.id_field)}
    if identifier is not None and not isinstance(identifier, str | int):
        return Record(where, row, error=f"field {source.id_field!r} is {type(identifier).__name__}, not a name or number")
    try:
        for part in (text, str(identifier), sorted_json(metadata)):
            part.encode()
    except UnicodeEncodeError:
        return Record(where, row, error="the record has a lone surrogate, so it is not Unicode")
    except (TypeError, ValueError) as error:
        return Record(where, row, error=f"its other fields cannot be kept: {type(error).__name__}")
    return Record(where, row, text, None if identifier is None else str(identifier), metadata)


Convert = Callable[[Source, str, int, Any], Record]
"""Source, file, row and value of a row -> the document that it holds."""


def _read_file(source: Source, where: str, path: Path, convert: Convert) -> Iterator[Record]:
    """Every record of a file; what cannot be read becomes a record with an error."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    suffix = _suffix(path)
    row: int | None = None
    try:
        if suffix == ".txt":
            yield Record(where, None, path.read_bytes().decode("utf-8-sig"))
        elif suffix == ".parquet":
            row = 0
            for batch in pq.ParquetFile(path).iter_batches():
                for value in batch.to_pylist():
                    yield convert(source, where, row, value)
                    row += 1
        else:
            for row, line in enumerate(_open_lines(path, suffix or "")):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield Record(where, row, error=f"not JSON in UTF-8 ({type(error).__name__})")
                    continue
                yield convert(source, where, row, value)
    except UnicodeDecodeError as error:
        yield Record(where, row, error=f"not UTF-8 at byte {error.start}")
    except (OSError, EOFError, pa.ArrowException, zstandard.ZstdError, zlib.error) as error:
        rest = "" if row is None else f" after row {row}"
        yield Record(where, row, error=f"unreadable{rest}: {type(error).__name__}")


def _read_dataset(source: Source, convert: Convert) -> Iterator[Record]:
    try:
        rows = _open_dataset(source)
    except (ValueError, KeyError, OSError) as error:
        sentence = " ".join(str(error).split())[:200]
        raise InputError(
            f"ingest.sources: the dataset of {source.name!r} ({source.path}, split {source.split!r}) cannot be opened: {sentence}"
        ) from error
    for row, value in enumerate(rows):
        yield convert(source, source.split, row, value)


def _open_dataset(source: Source) -> Iterable[Any]:
    import datasets

    folder = _dataset_folder(source)
    name = source.path.removeprefix(DATASET)
    if (folder and (folder / "dataset_info.json").exists()) or (folder and (folder / "dataset_dict.json").exists()):
        loaded = datasets.load_from_disk(str(folder))
        return loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
    revision = None if folder else _hub_commit(source)
    return datasets.load_dataset(str(folder or name), name=source.subset, split=source.split, streaming=True, revision=revision)


def _records(config: IngestConfig, convert: Convert) -> Iterator[tuple[Source, Record]]:
    for source in sorted(config.sources, key=lambda source: source.name):
        if source.path.startswith(DATASET):
            for record in _read_dataset(source, convert):
                yield source, record
            continue
        root, files = _files(source)
        for i, path in enumerate(files):
            # A name that is not UTF-8 is kept readable.
            where = path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()
            for record in _read_file(source, where, path, convert):
                yield source, record
            progress(i + 1, len(files), f"files of {source.name}")


class _ShardWriter:
    """Cuts the stream of documents into shards where the documents themselves say so.

    A shard may end after a document whose digest is below a bound that grows with the
    document, once it has a quarter of the typical size; so boundaries do not depend on
    what lies far away, and an added file changes the shards next to it only.
    """

    def __init__(self, out: Path, shard_bytes: int) -> None:
        self.out, self.shard_bytes = out, shard_bytes
        self.rows: list[dict[str, Any]] = []
        self.size, self.n_shards = 0, 0

    def add(self, row: dict[str, Any]) -> None:
        size = len(row["text"].encode())
        if self.rows and self.size + size > 3 * self.shard_bytes:
            self.flush()
        self.rows.append(row)
        self.size += size
        may_end = document_digest(row["id"], row["text"]) * self.shard_bytes < (size << 64) * 4 // 3
        if may_end and self.size >= self.shard_bytes // 4:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            folder = self.out / "shards" / f"{self.n_shards:05d}"
            write_table(folder / DOCUMENTS, self.rows, DOCUMENTS_SCHEMA)
            digests = [{"digest": text_digest(row["text"])} for row in self.rows]
            write_table(folder / TEXT_DIGESTS, digests, TEXT_DIGESTS_SCHEMA)
            self.n_shards += 1
            self.rows, self.size = [], 0


@stage(libraries=("pyarrow", "zstandard", "datasets", "huggingface_hub"), retries=2, fingerprint=fingerprint_sources)
def ingest(config: IngestConfig, out: Path) -> Metrics:
    """Write shards/NNNNN/documents.parquet and digests.parquet in the order of source, path and row, and errors.jsonl.

    Raises:
        InputError: if nothing can be read, or more than `max_error_rate` cannot.
    """
    return write_documents(config, out, _from_mapping)


def write_documents(config: IngestConfig, out: Path, convert: Convert) -> Metrics:
    """What `ingest` does, with another way to make a document of a row."""
    writer = _ShardWriter(out, config.shard_bytes)
    seen: set[int] = set()
    by_source: dict[str, dict[str, int]] = {}
    errors: list[dict[str, Any]] = []
    for source, record in _records(config, convert):
        counts = by_source.setdefault(source.name, {"documents": 0, "bytes": 0, "errors": 0, "repeated_ids": 0})
        where = record.where if record.row is None else f"{record.where}:{record.row}"
        if record.error is None and not (record.text or "").strip():
            record = Record(record.where, record.row, error="no text")
        if record.error is not None:
            counts["errors"] += 1
            errors.append({"source": source.name, "where": where, "error": record.error})
            continue
        assert record.text is not None
        identifier = f"{source.name}/{record.identifier if record.identifier is not None else where}"
        if document_digest(identifier, "") in seen:
            counts["repeated_ids"] += 1
            identifier = f"{identifier}@{where}"
        seen.add(document_digest(identifier, ""))
        counts["documents"] += 1
        counts["bytes"] += len(record.text.encode())
        writer.add(
            {"id": identifier, "text": record.text, "source": source.name, "metadata": sorted_json(record.metadata or {})}
        )
    writer.flush()
    (out / "errors.jsonl").write_text("".join(sorted_json(error) + "\n" for error in errors))
    total = sum(counts["documents"] for counts in by_source.values())
    kinds: dict[str, int] = {}
    for error in errors:
        kinds[error["error"]] = kinds.get(error["error"], 0) + 1
    if errors and (not total or len(errors) > config.max_error_rate * (total + len(errors))):
        examples = "; ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1])[:5])
        raise InputError(
            f"{len(errors)} of {total + len(errors)} records cannot be used ({examples}; the first is {errors[0]['where']}): "
            f"mend the text, or raise ingest.max_error_rate (now {config.max_error_rate})"
        )
    if not total:
        raise InputError("the sources hold no document: add text to them")
    return {
        "documents": total,
        "bytes": sum(counts["bytes"] for counts in by_source.values()),
        "shards": writer.n_shards,
        "errors": kinds,
        "sources": by_source,
    }


def _stamps(source: Any) -> dict[str, Any]:
    """Size and SHA-256 by relative path, in the fingerprint of one source of files."""
    return {name: stamp for name, *stamp in source.get("files", ())}


def unread_records(config: IngestConfig, before: list[Any], now: list[Any]) -> Iterator[tuple[int, int]]:
    """Digest of the text and size in bytes of each document of the files that were changed or added.

    Args:
        before, now: fingerprints of the sources, as `fingerprint_sources` gives them. A dataset
            of another commit, and a source that is new, are read as a whole.
    """
    sources = sorted(config.sources, key=lambda source: source.name)
    contents = {tuple(stamp) for source in before for stamp in _stamps(source).values()}
    for source, current in zip(sources, now, strict=True):
        if current in before:
            continue
        if source.path.startswith(DATASET):
            records: Iterator[Record] = _read_dataset(source, _from_mapping)
            yield from ((text_digest(record.text), len(record.text.encode())) for record in records if record.text)
            continue
        root, files = _files(source)
        stamps = _stamps(current)
        for path in files:
            where = path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()
            if tuple(stamps[where]) in contents:
                continue
            for record in _read_file(source, where, path, _from_mapping):
                if (record.text or "").strip():
                    assert record.text is not None
                    yield text_digest(record.text), len(record.text.encode())
