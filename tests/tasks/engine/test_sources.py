"""Files below a folder, and the memory of their digests, which may be damaged or unwritable and never matters."""

import hashlib
import os
import sqlite3
import time
from pathlib import Path

import pytest

from tasks.engine.sources import SourceDigests, walk


def old(path: Path, text: str, seconds: int = 60) -> Path:
    """A file that has not changed for a while, as far as its times tell."""
    path.write_text(text)
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two hundred files that count as old: the time of change of an inode cannot be set."""
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(200):
        old(folder / f"{i:03d}.txt", f"text {i}")
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr("tasks.engine.sources.time.time_ns", lambda: later)
    return folder


def test_a_folder_and_a_link_to_it_are_walked_by_name_whichever_was_made_first(tmp_path: Path):
    orders = []
    for first in ("real", "link"):
        root = tmp_path / first
        root.mkdir()
        outside = tmp_path / f"outside-{first}"
        outside.mkdir()
        for name in ("b", "a") if first == "real" else ("a", "b"):
            (root / name).symlink_to(outside)
        (outside / "x.txt").write_text("")
        orders.append([path.relative_to(root).as_posix() for path in walk(root)])
    assert orders == [["a/x.txt"], ["a/x.txt"]]


def rows(folder: Path) -> list[list[str | int]]:
    return [
        [path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in sorted(folder.iterdir())
    ]


@pytest.mark.parametrize(
    "damage", ["none", "first page", "a later page", "emptied", "a flipped digest", "old table"]
)
def test_damage_changes_no_digest(files: Path, tmp_path: Path, damage: str):
    memory, expected = tmp_path / "sources.sqlite", rows(files)
    assert SourceDigests(memory).files(files, walk(files)) == expected
    content = bytearray(memory.read_bytes())
    assert len(content) > 3 * 4096
    if damage == "first page":
        content[:200] = b"x" * 200
    elif damage == "a later page":
        content[2 * 4096 : 3 * 4096] = b"\xff" * 4096
    elif damage == "emptied":
        content.clear()
    elif damage == "a flipped digest":
        at = content.index(str(expected[7][2]).encode())
        content[at] = ord("f") if content[at] != ord("f") else ord("0")
    memory.write_bytes(content)
    if damage == "old table":
        memory.unlink()
        with sqlite3.connect(memory) as connection:
            connection.execute("CREATE TABLE digests (device INT, sha256 TEXT)")
    for _ in range(2):
        assert SourceDigests(memory).files(files, walk(files)) == expected


def test_a_memory_that_cannot_be_written_is_none(files: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for unwritable in (tmp_path / "file" / "sources.sqlite", tmp_path, Path("/proc/sources.sqlite")):
        for _ in range(2):
            assert SourceDigests(unwritable).files(files, walk(files)) == rows(files)


def test_what_is_remembered_is_not_read_again(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    memory, read = tmp_path / "sources.sqlite", []
    from tasks.engine import sources

    real = sources.sha256_of_file
    monkeypatch.setattr(sources, "sha256_of_file", lambda path: read.append(path) or real(path))
    first = SourceDigests(memory).files(files, walk(files))
    assert len(read) == 200
    assert SourceDigests(memory).files(files, walk(files)) == first
    assert len(read) == 200
    SourceDigests(memory, rehash=True).files(files, walk(files))
    assert len(read) == 400
    # Content that changed with its time and size kept is told by the time of change of its inode.
    status = os.stat(files / "007.txt")
    (files / "007.txt").write_text("TEXT 7")
    os.utime(files / "007.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert SourceDigests(memory).files(files, walk(files)) != first
    assert len(read) == 401


def test_a_young_file_is_read_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Within the clock's resolution it may change again with the same times."""
    folder, memory, read = tmp_path / "young", tmp_path / "sources.sqlite", []
    from tasks.engine import sources

    real = sources.sha256_of_file
    monkeypatch.setattr(sources, "sha256_of_file", lambda path: read.append(path) or real(path))
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    now = (folder / "a.txt").stat().st_ctime_ns + 1_000_000_000
    monkeypatch.setattr("tasks.engine.sources.time.time_ns", lambda: now)
    for _ in range(3):
        SourceDigests(memory).files(folder, walk(folder))
    assert len(read) == 3
