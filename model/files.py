"""Files that are whole or not there, and digests of files: written once for checkpoints, store and runs."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"


def fsync_path(path: Path) -> None:
    """Make a file's content, or a folder's list of names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's content: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, text: str, *, durable: bool = False) -> None:
    """Replace a file by one rename, so that a reader sees the old text or the new one, never a part.

    Args:
        durable: fsync the file before the rename and its folder after, so that it also holds after a loss of power.
    """
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with building.open("w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(building, path)
    except OSError:
        building.unlink(missing_ok=True)  # a full disk would stay full by it
        raise
    if durable:
        fsync_path(path.parent)


def _checksum(as_read: dict[str, Any]) -> str:
    text = json.dumps(as_read, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Replace a file of JSON durably; its last entry, `checksum`, is of all others."""
    as_read = json.loads(json.dumps(record))
    text = json.dumps({**record, CHECKSUM: _checksum(as_read)}, indent=1)
    write_whole(path, text + "\n", durable=True)


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises:
        OSError: if it is not there.
        ValueError: if it is torn, or not what was written.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.pop(CHECKSUM, None) != _checksum(record):
        raise ValueError("its checksum is not that of its content: it was damaged, or edited by hand")
    return record


def read_json(path: Path) -> Any:
    """What a file of JSON holds; None if it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
