"""The manifest: the record beside every result of what it was made from and what it cost."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from model.files import read_record, sha256_of_file
from tasks.engine.keys import digest

FORMAT_VERSION = 3
"""Stands for the engine in every key: raise it when stage, store or process change what is written."""

MANIFEST = "manifest.json"
OUT = "out"
FIGURES = "figures/"


class FileRecord(BaseModel):
    """One file below out/."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    size: int
    sha256: str


class ShardRecord(BaseModel):
    """What one call of a map stage wrote: an object of its own in the store.

    Attributes:
        parts: digests of the shards below its shards/, if one call makes several; else it is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str
    digest: str
    parts: tuple[str, ...] | None = None


class Accepted(BaseModel):
    """That a person took an earlier result for this key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str
    by: str
    at: str
    differences: list[str]


class Manifest(BaseModel):
    """What a result is, what it was made from, and what it cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    stage: str
    key: str
    digest: str
    ingredients: dict[str, Any]
    files: dict[str, FileRecord] = {}
    shards: list[ShardRecord] | None = None
    metrics: dict[str, Any] = {}
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    machine: dict[str, Any] = {}
    host: dict[str, Any] = {}
    created: str = ""
    accepted: Accepted | None = None

    def expected_key(self) -> str:
        """The key that follows from what it was made of."""
        made_of: dict[str, Any] = {"format": self.format_version}
        if self.shards is None:
            return digest({**made_of, "kind": "artifact", **self.ingredients})
        return map_key(
            self.format_version, self.stage, [shard.key for shard in self.shards], self.ingredients
        )

    def shard_digests(self) -> list[str]:
        """Digest of each shard: of its object, or of the files below out/shards/NNNNN of a stage that writes all of them."""
        if self.shards is not None:
            return [
                part
                for shard in self.shards
                for part in ((shard.digest,) if shard.parts is None else shard.parts)
            ]
        groups: dict[str, dict[str, FileRecord]] = {}
        for name, record in self.files.items():
            parts = name.split("/", 2)
            if parts[0] == "shards" and len(parts) == 3:
                groups.setdefault(parts[1], {})[parts[2]] = record
        return [files_digest(groups[position]) for position in sorted(groups)]


def map_key(format_version: int, stage: str, shard_keys: Sequence[str], ingredients: dict[str, Any]) -> str:
    """Key of the whole of a map stage; of a map over what lies outside also of what no piece knows."""
    made_of: dict[str, Any] = {"format": format_version, "kind": "map", "stage": stage, "shards": shard_keys}
    if "source" in ingredients:
        made_of |= {"config": ingredients["config"], "source": ingredients["source"]}
    return digest(made_of)


def read_manifest(result: Path) -> Manifest:
    """The manifest of a result.

    Raises:
        OSError, ValueError: if it is missing, torn, or not what was written.
    """
    return Manifest.model_validate(read_record(result / MANIFEST))


def record_faults(manifest: Manifest) -> list[str]:
    """What does not follow from what in a manifest: digest from files, key from ingredients."""
    faults = []
    if manifest.shards is None:
        is_right = manifest.digest == files_digest(manifest.files)
    else:
        is_right = manifest.digest == digest([shard.digest for shard in manifest.shards])
    if not is_right:
        faults.append("its digest does not follow from its files")
    if manifest.ingredients and manifest.key != manifest.expected_key():
        faults.append("its key does not follow from what it was made of")
    return faults


def file_faults(manifest: Manifest, folder: Path) -> list[str]:
    """How the files below out/, or below one folder in it, differ from the manifest: by name, size and SHA-256."""
    out = next(parent for parent in (folder, *folder.parents) if parent.name == OUT)
    prefix = "" if folder == out else f"{folder.relative_to(out).as_posix()}/"
    expected = {name: record for name, record in manifest.files.items() if name.startswith(prefix)}
    faults = []
    for name, record in expected.items():
        try:
            is_right = sha256_of_file(out / name) == record.sha256
        except OSError as error:
            faults.append(f"{out / name}: {error.strerror}")
            continue
        if not is_right:
            faults.append(f"{out / name}: the content is not what its manifest says")
    for path in sorted(folder.rglob("*")):
        is_folder = path.is_dir() and not path.is_symlink()
        if path.relative_to(out).as_posix() not in expected and not is_folder:
            faults.append(f"{path}: its manifest does not know this file")
    return faults


def files_digest(files: dict[str, FileRecord]) -> str:
    """Digest of (path, size, SHA-256) of files, without those below figures/."""
    total = hashlib.sha256()
    for name in sorted(files):
        if not name.startswith(FIGURES):
            total.update(f"{name}\0{files[name].size}\0{files[name].sha256}\n".encode())
    return total.hexdigest()[:32]


def record_files(out: Path) -> dict[str, FileRecord]:
    """Size and SHA-256 of every file below `out`; path relative to it.

    Raises:
        ValueError: for anything that is neither a file nor a folder, links included.
    """
    records = {}
    for path in sorted(out.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is neither a file nor a folder: a stage publishes plain files only")
        if path.is_file():
            record = FileRecord(size=path.stat().st_size, sha256=sha256_of_file(path))
            records[path.relative_to(out).as_posix()] = record
    return records
