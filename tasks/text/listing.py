"""Which files a source consists of, here or elsewhere, what is left out of it and why, and how large a shard should be."""

import fnmatch
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
from typing import NamedTuple

from model.errors import InputError
from tasks.engine.sources import is_regular, walk
from tasks.text.office import MEND, is_installed
from tasks.text.sources import PACKAGE, READ, IngestConfig, Source, is_remote, kind_of, relative_name


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


_VENDORED = frozenset(
    [
        "node_modules",
        "vendor",
        "vendored",
        "third_party",
        "third-party",
        "site-packages",
        "__pycache__",
        "venv",
    ]
)
_GENERATED = re.compile(
    r"(\.min\.(js|css)|\.lock|-lock\.json|_pb2(_grpc)?\.py|\.pb\.(go|cc|h)|\.g\.dart|\.designer\.cs|\.snap)$",
    re.I,
)


def _why_not(path: Path, checkout: Path | None) -> str | None:
    """Why a file is not read; None if it is.

    Args:
        checkout: root of the git checkout that it is in: what is copied into one, or generated, is not its authors' text.
    """
    kind = kind_of(path)
    if kind is None:
        return _no_kind(path)
    if kind.of == "office" and not is_installed(kind.suffix):
        return f"{kind.suffix} needs {MEND}"
    if checkout is not None:
        if not _VENDORED.isdisjoint(path.relative_to(checkout).parts[:-1]):
            return "copied into the checkout"
        if _GENERATED.search(path.name):
            return "generated"
    return None


def _below(root: Path, candidates: Callable[[Callable[[Path, str], None]], Iterable[Path]]) -> Files:
    """Those of the candidates that are read, and what is left out."""
    skipped: list[tuple[str, str]] = []

    def skip(path: Path, why: str) -> None:
        skipped.append((relative_name(path, root) if path.is_relative_to(root) else str(path), why))

    paths = []
    is_checkout = (root / ".git").exists()
    for path in candidates(skip):
        why = _why_not(path, root if is_checkout else None)
        if why:
            skip(path, why)
        else:
            paths.append(path)
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


_Folders = frozenset[tuple[int, int]]
"""Folders, by device and inode."""


def _is_hidden_from(name: str, pattern: str) -> bool:
    """Whether a name is one that a pattern means only if it says so."""
    return name.startswith(".") and not pattern.startswith(".")


def _below_folder(folder: Path, parts: tuple[str, ...], above: _Folders) -> Iterator[Path]:
    """What fits the parts of a glob below a folder; `**` enters no folder below itself again, through whatever link.

    Args:
        above: the folders on the way to this one.
    """
    first, *rest = parts
    if first != "**":
        try:
            names = os.listdir(folder) if glob.has_magic(first) else [first]
        except OSError:
            return
        for name in names:
            path = folder / name
            if name != first and (_is_hidden_from(name, first) or not fnmatch.fnmatch(name, first)):
                continue
            if rest:
                yield from _below_folder(path, tuple(rest), above)
            elif os.path.lexists(path):
                yield path
        return
    try:
        status = folder.stat()
        folders = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    yield from _below_folder(folder, tuple(rest) or ("*",), above)
    for name in folders:
        if not name.startswith("."):
            yield from _below_folder(folder / name, parts, above | {here})


def _matches(root: Path, pattern: str, skip: Callable[[Path, str], None]) -> Iterator[Path]:
    """Regular files below `root` that fit a glob."""
    parts = Path(pattern).parts
    if "**" in parts:
        found = set(_below_folder(root, parts, frozenset()))
    else:
        found = set(map(Path, glob.glob(str(Path(glob.escape(str(root))) / pattern))))
    for match in sorted(found):
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
        whys = [_why_not(Path(name), None) for name, _, _ in entries]
        kept = [
            Entry(*entry[:2], None, entry[2]) for entry, why in zip(entries, whys, strict=True) if why is None
        ]
        skipped += [(entry[0], why) for entry, why in zip(entries, whys, strict=True) if why is not None]
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


_EXPANDS = {".gz": 4, ".zst": 4, ".bz2": 5, ".parquet": 3}
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
