"""How far a stage is: written to one small file that the terminal and Prefect read."""

import json
import time
from pathlib import Path
from typing import NamedTuple

from model.files import read_json, write_whole

_INTERVAL_SECONDS = 0.25
_target: Path | None = None
_last_write = 0.0


class Progress(NamedTuple):
    """Work done, all work (0 if unknown), what is counted, and what else there is to say."""

    done: int
    total: int
    unit: str
    note: str = ""


def report_to(path: Path | None) -> None:
    """Send the progress of this process to `path`; None sends it nowhere."""
    global _target, _last_write
    _target, _last_write = path, 0.0


def progress(done: int, total: int, unit: str, note: str = "") -> None:
    """Say that `done` of `total` `unit` are finished. Cheap: writes a few times a second at most."""
    global _last_write
    now = time.monotonic()
    if _target is None or (now - _last_write < _INTERVAL_SECONDS and done != total):
        return
    _last_write = now
    write_whole(_target, json.dumps([done, total, unit, note]))


def read_progress(path: Path) -> Progress | None:
    """What was last written to `path`, if anything."""
    written = read_json(path)
    return Progress(*written) if written else None
