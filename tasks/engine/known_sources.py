"""What was found in sources before, by their content, in the user's cache: a command need not parse a hundred files again."""

import hashlib
import sys
import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import platformdirs

from model.files import read_record, write_record

_MOST = 2_000
"""Sources that are remembered; those that were learnt first are forgotten first."""
_UNUSED_SECONDS = 30 * 24 * 3600
"""After which the file of another version is removed."""


class KnownSources:
    """What some function finds in a source, from the source alone.

    Args:
        finder: file with the source of that function, as it is when this is made: what another one found, or another Python, is
            forgotten.
    """

    def __init__(self, finder: Path) -> None:
        self.is_changed, self._lock = False, threading.Lock()
        sources = finder.read_bytes() + Path(__file__).read_bytes()
        self._version = hashlib.sha256(f"{sys.version}\0".encode() + sources).hexdigest()[:32]

    @cached_property
    def path(self) -> Path:
        """File of what is known; whoever cannot read or write it finds everything anew."""
        return Path(platformdirs.user_cache_dir("scratchlm")) / f"sources-{self._version}.json"

    @cached_property
    def _known(self) -> dict[str, Any]:
        return self._saved()

    def _saved(self) -> dict[str, Any]:
        try:
            return read_record(self.path)
        except (OSError, ValueError):
            return {}

    def find(self, source: str, find: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """What `find` finds in a source, which can be told as JSON."""
        key = hashlib.sha256(source.encode()).hexdigest()
        if key not in self._known:
            self._known[key] = find(source)
            self.is_changed = True
        found: dict[str, Any] = self._known[key]
        return found

    def save(self) -> None:
        """Keep what was learnt for other processes."""
        with self._lock:
            if not self.is_changed:
                return
            self.is_changed = False
            # With what others have learnt meanwhile.
            known = {**self._saved(), **self._known}
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_record(self.path, dict(list(known.items())[-_MOST:]))
                for other in self.path.parent.glob("sources-*.json"):
                    if time.time() - other.stat().st_mtime > _UNUSED_SECONDS:
                        other.unlink(missing_ok=True)
            except OSError:  # a home that nobody may write to
                return
