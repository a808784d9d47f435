"""Digests of input files, remembered by what the file system says of them."""

import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

from model.files import sha256_of_file

_YOUNG_NS = 2_000_000_000


class SourceDigests:
    """SHA-256 of files, computed once for each (device, inode, size, mtime, ctime).

    A file younger than two seconds may change again within the clock's resolution, so it
    is hashed again every time.

    Args:
        path: SQLite file of the memory; None remembers nothing.
        rehash: trust nothing that is remembered.
    """

    def __init__(self, path: Path | None = None, *, rehash: bool = False) -> None:
        self.path, self.rehash = path, rehash

    def files(self, root: Path, paths: Iterable[Path]) -> list[list[str | int]]:
        """For each file: path relative to `root`, size in bytes, SHA-256. Sorted by path."""
        connection = self._connect()
        try:
            rows: list[list[str | int]] = []
            for path in paths:
                name = path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()
                try:
                    rows.append([name, path.stat().st_size, self._digest(connection, path)])
                except OSError as error:
                    # Reading the file will fail in the same way, and be counted and named there.
                    rows.append([name, -1, f"unreadable: {type(error).__name__}"])
            return sorted(rows, key=lambda row: str(row[0]))
        finally:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        try:
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            return _open(self.path)
        except (OSError, sqlite3.OperationalError):
            return _open(None)  # a folder that cannot be written to
        except sqlite3.DatabaseError:
            assert self.path is not None
            self.path.unlink()  # damaged; it is only a memory
            return _open(self.path)

    def _digest(self, connection: sqlite3.Connection, path: Path) -> str:
        status = path.stat()
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        young = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _YOUNG_NS
        if not self.rehash and not young:
            query = "SELECT sha256 FROM digests WHERE device=? AND inode=? AND size=? AND mtime=? AND ctime=?"
            known = connection.execute(query, stamp).fetchone()
            if known:
                return known[0]
        sha256 = sha256_of_file(path)
        if not young:
            connection.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)", (*stamp, sha256))
        return sha256


def _open(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path or ":memory:", timeout=30, isolation_level=None)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS digests (device INT, inode INT, size INT, mtime INT, ctime INT, sha256 TEXT, "
        "PRIMARY KEY (device, inode))"
    )
    return connection
