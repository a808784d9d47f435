"""The manifest: the record beside every result of what it was made from and what it cost."""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from model.files import sha256_of_file

FORMAT_VERSION = 2
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
    """One shard of a map stage: an object of its own in the store."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: str
    digest: str


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

    def shard_digests(self) -> list[str]:
        """Digest of each shard: of its object, or of the files below out/shards/NNNNN of a stage that writes all of them."""
        if self.shards is not None:
            return [shard.digest for shard in self.shards]
        groups: dict[str, dict[str, FileRecord]] = {}
        for name, record in self.files.items():
            parts = name.split("/", 2)
            if parts[0] == "shards" and len(parts) == 3:
                groups.setdefault(parts[1], {})[parts[2]] = record
        return [files_digest(groups[position]) for position in sorted(groups)]


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
