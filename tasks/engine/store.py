"""The store: finished results by key, on a file system that renames atomically.

artifacts/STAGE/KEY/   manifest.json, log.txt, out/     a finished result
shards/STAGE/KEY/      the same, for one shard of a map stage
building/STAGE-KEY/    what is being built; nothing reads it
work/STAGE-KEY/        what a stage keeps between attempts (training checkpoints)
locks/                 one file a key, held with flock while it is built
runs/                  one folder a run
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from model.files import fsync_path, sha256_of_file
from tasks.engine.manifest import MANIFEST, OUT, Manifest, files_digest, record_files

Kind = Literal["artifacts", "shards"]


class BrokenArtifact(Exception):
    """A result is there and is not what its manifest says."""


@dataclass(frozen=True)
class Stored:
    """A finished result in the store."""

    path: Path
    manifest: Manifest
    shard_paths: tuple[Path, ...] = ()

    @property
    def out(self) -> Path:
        """Folder of the files that the stage wrote."""
        return self.path / OUT


class Store:
    """Results below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    def path(self, kind: Kind, stage: str, key: str) -> Path:
        """Where the result with this key lies, or will lie."""
        return self.root / kind / stage / key

    def building(self, stage: str, key: str) -> Path:
        """Where it is built."""
        return self.root / "building" / f"{stage}-{key}"

    def work(self, stage: str, key: str) -> Path:
        """What the stage keeps between attempts."""
        return self.root / "work" / f"{stage}-{key}"

    def find(self, kind: Kind, stage: str, key: str) -> Stored | None:
        """The result, if it is there and whole as far as names and sizes tell; None if it is not there.

        Raises:
            BrokenArtifact: if something is there that its manifest does not describe.
        """
        path = self.path(kind, stage, key)
        if not path.exists():
            return None
        try:
            manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
        except (OSError, ValidationError) as error:
            raise BrokenArtifact(f"{path.name[:12]} has no readable manifest") from error
        if manifest.key != key:
            raise BrokenArtifact(f"{path.name[:12]} holds the manifest of {manifest.key[:12]}")
        for name, record in manifest.files.items():
            try:
                size = os.stat(path / OUT / name).st_size
            except OSError as error:
                raise BrokenArtifact(f"{name} is missing") from error
            if size != record.size:
                raise BrokenArtifact(f"{name} has {size} bytes instead of {record.size}")
        if manifest.shards is None:
            return Stored(
                path,
                manifest,
                tuple(path / OUT / "shards" / f"{i:05d}" for i in range(len(manifest.shard_digests()))),
            )
        paths = []
        for position, shard in enumerate(manifest.shards):
            stored = self.find("shards", stage, shard.key)
            if stored is None or stored.manifest.digest != shard.digest:
                raise BrokenArtifact(f"shard {position} is {'missing' if stored is None else 'another one'}")
            paths.append(stored.out)
        return Stored(path, manifest, tuple(paths))

    def find_whole(self, kind: Kind, stage: str, key: str) -> Stored | None:
        """Like `find`, but what is broken counts as not there."""
        try:
            return self.find(kind, stage, key)
        except BrokenArtifact:
            return None

    @contextmanager
    def lock(self, stage: str, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the only right to build a key; yields whether it was had. The kernel frees it when a process dies."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{stage}-{key}", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def start_building(self, stage: str, key: str) -> Path:
        """An empty folder to build in, with an empty out/; the caller holds the lock."""
        building = self.building(stage, key)
        shutil.rmtree(building, ignore_errors=True)
        (building / OUT).mkdir(parents=True)
        return building

    def publish(self, kind: Kind, manifest: Manifest, building: Path) -> Stored:
        """Make what was built the result of its key: manifest last, fsync, one rename.

        `manifest.files` and `manifest.digest` are filled in from the files, unless the
        manifest lists shards. A broken result in the place is removed first.
        """
        stage, key = manifest.stage, manifest.key
        out = building / OUT
        if manifest.shards is None:
            files = record_files(out)
            manifest = manifest.model_copy(update={"files": files, "digest": files_digest(files)})
        for path in [
            *(out / name for name in manifest.files),
            *(p for p in out.rglob("*") if p.is_dir()),
            out,
        ]:
            fsync_path(path)
        (building / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        fsync_path(building / MANIFEST)
        fsync_path(building)
        for leftover in ("spec.json", "progress.json"):
            (building / leftover).unlink(missing_ok=True)
        path = self.path(kind, stage, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.discard(path)
        os.rename(building, path)
        fsync_path(path.parent)
        shutil.rmtree(self.work(stage, key), ignore_errors=True)
        published = self.find(kind, stage, key)
        assert published is not None
        return published

    def discard(self, path: Path) -> None:
        """Remove a result: first out of sight by one rename, then from disk."""
        if path.exists():
            trash = self.root / "building" / f"trash-{uuid.uuid4().hex}"
            trash.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, trash)
            shutil.rmtree(trash)

    def verify(self, stored: Stored) -> list[str]:
        """Every difference between a result and its manifest, by full hashes; empty if there is none."""
        faults = []
        for name, record in stored.manifest.files.items():
            if sha256_of_file(stored.out / name) != record.sha256:
                faults.append(f"{stored.out / name}: the content is not what its manifest says")
        return faults
