"""Which files there are below a folder, and digests of them, remembered by what the file system says."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model.files import sha256_of_file

_YOUNG_NS = 2_000_000_000
_COMMIT_SECONDS = 2.0

Stamp = tuple[int, int, int, int, int]
"""What the file system says of a file: device, inode, size, and times of change of content and of inode in ns."""


def is_regular(path: Path) -> bool:
    """Whether it is a file with content, or a link to nowhere; a pipe or a device would never end."""
    return path.is_file() or not path.exists()


def walk(root: Path, skip: Callable[[Path, str], None] = lambda path, why: None) -> Iterator[Path]:
    """Every regular file below a folder that is not hidden, through links too, in the order of names.

    A link that points nowhere is among it; a folder that was visited before is not visited again, so of a folder
    and a link to it the first by name counts, whichever was made first.

    Args:
        skip: called with everything that is left out, a folder as one thing, and why.
    """

    def skip_unreadable(error: OSError) -> None:
        skip(Path(error.filename), f"unreadable folder: {type(error).__name__}")

    seen: set[tuple[int, int]] = set()
    for folder, names, files in os.walk(root, followlinks=True, onerror=skip_unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in sorted(names + files):
            if name.startswith("."):
                skip(Path(folder) / name, "hidden")
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if name.startswith("."):
                continue
            if is_regular(path):
                yield path
            else:
                skip(path, "not a regular file")


class SourceDigests:
    """SHA-256 and other facts of the content of files, computed once for each (device, inode, size, mtime, ctime).

    A file younger than two seconds may change again within the clock's resolution, so it
    is hashed again every time. What is written through a memory map after it was hashed may change
    neither time for a while: that is seen with `rehash`, and when a stage has read it.

    Args:
        path: SQLite file of the memory; None remembers nothing.
        rehash: trust nothing that is remembered.
    """

    def __init__(self, path: Path | None = None, *, rehash: bool = False) -> None:
        self.path, self.rehash = path, rehash

    def files(self, root: Path, paths: Iterable[Path]) -> list[list[str | int]]:
        """For each file: path relative to `root`, size in bytes, SHA-256. Sorted by path."""
        with self.remembering() as facts:
            rows: list[list[str | int]] = []
            for path in paths:
                name = path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()
                rows.append([name, *facts.size_and_sha256(path)])
            return sorted(rows, key=lambda row: str(row[0]))

    @contextmanager
    def remembering(self) -> "Iterator[Facts]":
        """The facts of any number of files, with one look at the memory."""
        with _Memory(self.path) as memory:
            yield Facts(memory, self.rehash)


class Facts:
    """What the content of a file is, by what is remembered of it; see `SourceDigests`."""

    def __init__(self, memory: "_Memory", rehash: bool) -> None:
        self.memory, self.rehash = memory, rehash

    def size_and_sha256(self, path: Path) -> tuple[int, str]:
        """Size in bytes and SHA-256 of a file; -1 and why, if it cannot be read."""
        try:
            status = path.stat()
            return status.st_size, self.fact(path, "sha256", sha256_of_file, status)
        except OSError as error:
            # Reading the file will fail in the same way, and be counted and named there.
            return -1, f"unreadable: {type(error).__name__}"

    def fact(
        self, path: Path, what: str, find: Callable[[Path], str], status: os.stat_result | None = None
    ) -> str:
        """What `find` says of the content of a file, remembered under the name `what`.

        Raises:
            OSError: if it cannot be read.
        """
        status = status or path.stat()
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        young = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _YOUNG_NS
        if not self.rehash and not young:
            known = self.memory.recall(stamp, what)
            if known is not None:
                return known
        value = find(path)
        if not young:
            self.memory.remember(stamp, what, value)
        return value


def _seal(stamp: Stamp, what: str, value: str) -> str:
    return hashlib.sha256(f"{stamp} {what} {value}".encode()).hexdigest()[:16]


class _Memory:
    """The SQLite file of facts. It is only a memory: damaged it begins anew, and where none can be it forgets."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.news: list[tuple[int | str, ...]] = []
        self.last_commit = time.monotonic()
        self.connection = self._open()

    def __enter__(self) -> "_Memory":
        return self

    def __exit__(self, *_: object) -> None:
        self._commit()
        self.connection.close()

    def recall(self, stamp: Stamp, what: str) -> str | None:
        """A fact of a file with this stamp."""
        query = "SELECT value, seal FROM facts WHERE device=? AND inode=? AND what=? AND size=? AND mtime=? AND ctime=?"
        try:
            known = self.connection.execute(query, (*stamp[:2], what, *stamp[2:])).fetchone()
        except sqlite3.DatabaseError as error:
            self._recover(error)
            return None
        return known[0] if known and known[1] == _seal(stamp, what, known[0]) else None

    def remember(self, stamp: Stamp, what: str, value: str) -> None:
        """Write it down, with others: a transaction costs as much as hashing a small file a hundred times."""
        self.news.append((*stamp[:2], what, *stamp[2:], value, _seal(stamp, what, value)))
        if time.monotonic() - self.last_commit > _COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        self.last_commit = time.monotonic()
        if self.news:
            try:
                with self.connection:
                    insert = "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                    self.connection.executemany(insert, self.news)
            except sqlite3.DatabaseError as error:
                self._recover(error)
        self.news = []

    def _open(self) -> sqlite3.Connection:
        try:
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            return _connect(self.path)
        except (OSError, sqlite3.OperationalError):
            return _connect(None)  # a folder or file that cannot be written to
        except sqlite3.DatabaseError:
            assert self.path is not None
            self.path.unlink(missing_ok=True)
            return _connect(self.path)

    def _recover(self, error: sqlite3.DatabaseError) -> None:
        """Forget a damaged file; where it cannot be written to, or somebody holds it for long, go on without."""
        self.connection.close()
        if self.path and not isinstance(error, sqlite3.OperationalError):
            self.path.unlink(missing_ok=True)
        self.path = None if isinstance(error, sqlite3.OperationalError) else self.path
        self.connection = self._open()


def _connect(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path or ":memory:", timeout=30)
    with connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS facts (device INT, inode INT, what TEXT, size INT, mtime INT, ctime INT, "
            "value TEXT, seal TEXT, PRIMARY KEY (device, inode, what))"
        )
    return connection
