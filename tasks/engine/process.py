"""A child process that cannot outlive, hang or orphan its parent."""

import asyncio
import contextlib
import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from model.imports import leave_at_once
from tasks.engine.secrets import redact

PARENT_VARIABLE, REPORT_VARIABLE = "SCRATCHLM_PARENT", "SCRATCHLM_REPORT"
GRACE_SECONDS = 25.0
_PR_SET_PDEATHSIG = 1
_RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, and end at once if it has ended already.

    Args:
        parent: process id that the parent is expected to have.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child: this one without the variables of ranks, and with no folder of its caller on the path."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _RANK_VARIABLES and not name.startswith("TORCHELASTIC_")
    }
    own = {
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        # By default OpenMP threads spin while they wait, and beside any other busy program training
        # becomes six times slower; with this bound it stays within a few percent, alone or not.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
        PARENT_VARIABLE: str(os.getpid()),
    }
    return {**kept, **own, **(extra or {})}


def adopt() -> None:
    """Bind this process to the parent that `child_environment` named; the first thing that a child does."""
    leave_at_once()
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None:
        die_with_parent(int(parent))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has at this moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def exit_on_sigterm() -> None:
    """Turn SIGTERM into SystemExit, so that `finally` blocks run and children are told."""

    def leave(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def stop(child: "subprocess.Popen[bytes]", seconds: float) -> None:
    """End a child: SIGTERM, and SIGKILL if it is still there after some seconds."""
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def report(text: str) -> None:
    """Tell the parent how this child ended, through a pipe: that works on a full disk too. No more than 60,000 bytes."""
    descriptor = os.environ.pop(REPORT_VARIABLE, None)
    if descriptor is not None:
        os.write(int(descriptor), text.encode())
        os.close(int(descriptor))


def _read_report(descriptor: int) -> str:
    """What a child that has ended reported; empty if it ended without a word."""
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 1 << 16).decode()
    except BlockingIOError:
        return ""  # a process that it left behind holds the other end


async def run_child(
    arguments: list[str], log: Path, poll: Callable[[], None], poll_seconds: float = 0.25
) -> tuple[int, str]:
    """Run a child in a process group of its own until it ends.

    Called in the main thread: the kernel kills the child when the thread that started it ends.

    Args:
        arguments: the program and its arguments.
        log: file that takes what it prints.
        poll: called about every `poll_seconds` while it runs.

    Returns:
        Its exit status, minus the signal that killed it, and what it gave to `report`.

    Raises:
        asyncio.CancelledError: if this call is cancelled; by then the whole group is gone. It
            gets SIGTERM first, and SIGKILL after `GRACE_SECONDS`.
    """
    # Before the child begins: a quick one has moved the folder of its log by the time that this goes on.
    opened = log.open("ab", buffering=0)
    reports, reporting = os.pipe()
    try:
        child = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=child_environment({REPORT_VARIABLE: str(reporting)}),
            pass_fds=(reporting,),
            start_new_session=True,
        )
    except BaseException:
        os.close(reports)
        opened.close()
        raise
    finally:
        os.close(reporting)
    assert child.stdout is not None
    copying = asyncio.ensure_future(_copy(child.stdout, opened))
    waiting = asyncio.ensure_future(child.wait())
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=poll_seconds)
            poll()
            if done:
                # What a grandchild that was left behind may still print is not waited for.
                await asyncio.wait({copying}, timeout=1)
                return waiting.result(), _read_report(reports)
    except BaseException:
        _signal_group(child.pid, signal.SIGTERM)
        # A closing event loop cancels every task, `waiting` too, so the child's own state is asked.
        deadline = time.monotonic() + GRACE_SECONDS
        while child.returncode is None and time.monotonic() < deadline:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
        raise
    finally:
        _signal_group(child.pid, signal.SIGKILL)
        copying.cancel()
        os.close(reports)


async def _copy(stream: asyncio.StreamReader, log: BinaryIO) -> None:
    """Write what a child prints to its log, without the values of secrets."""
    with log:
        rest = b""
        while chunk := await stream.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > 1 << 20:
                lines, rest = [*lines, rest], b""
            _write(log, b"".join(line + b"\n" for line in lines))
        _write(log, rest)


def _write(log: BinaryIO, printed: bytes) -> None:
    """Add to a log. A full disk costs lines of it; the child goes on, and says itself what it cannot write."""
    try:
        log.write(redact(printed.decode(errors="replace")).encode())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass
