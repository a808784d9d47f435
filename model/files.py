"""Files that are whole or not there, and digests of files: written once for checkpoints, store and runs."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


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
        durable: fsync before the rename, so that it also holds after a loss of power.
    """
    building = path.with_name(f".{path.name}.{os.getpid()}")
    with building.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(building, path)


def read_json(path: Path) -> Any:
    """What a file of JSON holds; None if it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
