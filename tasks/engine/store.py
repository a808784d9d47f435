"""The store: finished results by key, on a file system that renames atomically.

artifacts/STAGE/KEY/   manifest.json, log.txt, out/     a finished result
shards/STAGE/KEY/      the same, for one shard of a map stage
building/STAGE-KEY/    what is being built, each time in a folder of its own; nothing reads it
attempts/STAGE-KEY/    the same, by workers of a cluster
work/STAGE-KEY/        what a stage keeps between attempts (training checkpoints)
damaged/               results that were not what their manifests say
locks/                 one file a key, held with flock while it is built; roots, see `Store.roots`
runs/                  one folder a run
"""

import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.errors import StageFailed
from model.files import fsync_path, write_record
from tasks.engine.leases import hold, is_held_elsewhere
from tasks.engine.manifest import (
    MANIFEST,
    OUT,
    Manifest,
    file_faults,
    files_digest,
    read_manifest,
    record_faults,
    record_files,
)

DAMAGED, ATTEMPT = "damaged", "attempt"
Kind = Literal["artifacts", "shards"]


class BrokenArtifact(Exception):
    """A result is there and is not what its manifest says."""


@contextmanager
def flock(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, which is made if need be; yields whether it was had. The kernel frees it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Open for reading too: on NFS a shared lock is one of reading.
    with path.open("a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


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
        """Where it is built, each time in a folder of its own."""
        return self.root / "building" / f"{stage}-{key}"

    def attempts(self, stage: str, key: str) -> Path:
        """Where workers of a cluster build its shards, each in a folder of its own. Nobody else removes one while they may."""
        return self.root / "attempts" / f"{stage}-{key}"

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
            manifest = read_manifest(path)
        except (OSError, ValueError) as error:
            raise BrokenArtifact(f"{path.name[:12]} has no readable manifest: {error}") from error
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
        paths: list[Path] = []
        for position, shard in enumerate(manifest.shards):
            stored = self.find("shards", stage, shard.key)
            if stored is None or stored.manifest.digest != shard.digest:
                raise BrokenArtifact(f"shard {position} is {'missing' if stored is None else 'another one'}")
            paths += stored.shard_paths if shard.parts is not None else [stored.out]
        return Stored(path, manifest, tuple(paths))

    def find_whole(self, kind: Kind, stage: str, key: str) -> Stored | None:
        """Like `find`, but what is broken counts as not there."""
        try:
            return self.find(kind, stage, key)
        except BrokenArtifact:
            return None

    @contextmanager
    def lock(self, stage: str, key: str, *, wait: bool = True, leased: bool = False) -> Iterator[bool]:
        """Hold the only right to build a key; yields whether it was had. The kernel frees it when a process dies.

        Args:
            leased: hold it against other computers too, by a lease; without one, a lease of another computer counts.
        """
        with flock(self.root / "locks" / f"{stage}-{key}", wait=wait) as held:
            lease = self.lease(stage, key)
            while held and wait and is_held_elsewhere(lease):
                time.sleep(1)
            if held and leased:
                with hold(lease) as had:
                    yield had
            else:
                yield held and not is_held_elsewhere(lease)

    def lease(self, stage: str, key: str) -> Path:
        """The file by which other computers see that a key is being built."""
        return self.root / "locks" / f"{stage}-{key}.lease"

    @contextmanager
    def roots(self, *, exclusive: bool = False, wait: bool = True) -> Iterator[bool]:
        """Hold the list of what is needed still: shared to add to it and look up what was added, exclusive to collect.

        So a result is either written down as needed before it is looked for, or gone before that, and never between.
        """
        with flock(self.root / "locks" / "roots", shared=not exclusive, wait=wait) as held:
            yield held

    def start_building(self, stage: str, key: str) -> Path:
        """An empty folder to build in, with an empty out/; the caller holds the lock.

        It has a name of its own: whoever held the lock before, and does not know yet that it is gone, builds and publishes
        nothing in it. What such a one left is removed.
        """
        building = self.building(stage, key)
        shutil.rmtree(building, ignore_errors=True)
        own = building / uuid.uuid4().hex[:8]
        (own / OUT).mkdir(parents=True)
        return own

    def publish(self, kind: Kind, manifest: Manifest, building: Path, *, is_recorded: bool = False) -> Stored:
        """Make what was built the result of its key: manifest last, fsync, one rename.

        `manifest.files` and `manifest.digest` are filled in from the files, unless the
        manifest lists shards. A broken result in the place is removed first.

        Args:
            is_recorded: the manifest describes its files already.
        """
        stage, key = manifest.stage, manifest.key
        out = building / OUT
        if not is_recorded:
            files = record_files(out)
            own = {"digest": files_digest(files)} if manifest.shards is None else {}
            manifest = manifest.model_copy(update={"files": files, **own})
        for path in [
            *(out / name for name in manifest.files),
            *(p for p in out.rglob("*") if p.is_dir()),
            out,
        ]:
            fsync_path(path)
        write_record(building / MANIFEST, manifest.model_dump(mode="json"))
        for leftover in ("spec.json", "progress.json", ATTEMPT):
            (building / leftover).unlink(missing_ok=True)
        path = self.path(kind, stage, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._put_in_place(building, path, manifest)
        if building.parent == self.building(stage, key):
            with suppress(OSError):
                building.parent.rmdir()
        fsync_path(path.parent)
        shutil.rmtree(self.work(stage, key), ignore_errors=True)
        published = self.find(kind, stage, key)
        assert published is not None
        return published

    def _put_in_place(self, building: Path, path: Path, manifest: Manifest) -> None:
        """Rename what was built to where its key is looked for; if an equal result is there already, that stays."""
        while True:
            there = (
                self.find_whole("shards", manifest.stage, manifest.key)
                if path.parts[-3] == "shards"
                else None
            )
            if there and there.manifest.digest == manifest.digest:
                self.discard(building)
                return
            self.discard(path)
            try:
                os.rename(building, path)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    def discard(self, path: Path) -> None:
        """Remove a result: first out of sight by one rename, then from disk."""
        self.delete(self.put_away(path))

    def put_away(self, path: Path) -> Path:
        """Take a file or folder of the store out of sight by one rename; returns where it waits to be deleted."""
        trash = self.root / "building" / f"trash-{uuid.uuid4().hex}"
        trash.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # it is not there, or another process was faster
            os.rename(path, trash)
        return trash

    def delete(self, trash: Path) -> None:
        """Delete what was put away; another process may be at it too, and what stays is garbage for the next collection."""
        if trash.is_dir():
            shutil.rmtree(trash, ignore_errors=True)
        else:
            trash.unlink(missing_ok=True)

    def faults(self, stored: Stored) -> list[str]:
        """Every difference between a result and its manifest, by full hashes; empty if there is none."""
        return [
            *(f"{stored.path}: {fault}" for fault in record_faults(stored.manifest)),
            *file_faults(stored.manifest, stored.out),
        ]

    def check_input(self, out: Path) -> None:
        """Compare what a stage is about to read with its manifest, byte by byte; what is damaged is set aside.

        Args:
            out: the folder of a result, or that of one shard in it.

        Raises:
            StageFailed: if anything differs.
        """
        result = next(parent for parent in (out, *out.parents) if parent.name == OUT).parent
        faults = file_faults(read_manifest(result), out)
        if faults:
            self.set_aside(result)
            raise StageFailed(
                f"what it was to read is damaged, and was moved to {self.root / DAMAGED} ({faults[0]}): run the same "
                "command again, which makes it anew"
            )

    def set_aside(self, path: Path) -> None:
        """Take a damaged result out of its place, and keep it for whoever wants to know what happened to it."""
        folder = self.root / DAMAGED
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process was faster
            os.rename(path, folder / f"{path.parent.name}-{path.name}-{uuid.uuid4().hex[:8]}")
