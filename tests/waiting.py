"""Waiting for states, never for seconds: a deadline is there against hanging alone."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HANGING_SECONDS = 600.0


ASKING_A_SERVER = 1.0


def wait_until(
    condition: Callable[[], Any],
    what: str = "it",
    process: subprocess.Popen | None = None,
    every_seconds: float = 0.2,
) -> Any:
    """What the condition gives once it is true.

    Args:
        what: names it if it never comes.
        process: fails at once if this ends before.
        every_seconds: how often it is asked; `ASKING_A_SERVER` where that costs a part of what is waited for.
    """
    deadline = time.monotonic() + HANGING_SECONDS
    while time.monotonic() < deadline:
        # Asked before the condition: what it did last is seen.
        ended = process is not None and process.poll() is not None
        value = condition()
        if value:
            return value
        if ended:
            pytest.fail(f"the command ended with {process.returncode} before {what}")  # type: ignore[union-attr]
        time.sleep(every_seconds)
    pytest.fail(f"{what} did not come to be")


def processes_of(folder: Path) -> list[int]:
    """Process ids of those whose command or environment names a folder."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in told:
                pids.append(int(entry.name))
    return pids


def assert_no_process_of(folder: Path) -> None:
    """Whatever was started there ends."""
    wait_until(lambda: not processes_of(folder), f"the end of all processes of {folder}")
