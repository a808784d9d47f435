"""Leases: who works on what, on a file system that several computers share, where `flock` may hold on one of them only.

A lease is a file that its holder touches every few seconds. One that was not touched for half a minute is nobody's. Its age is
told by the clock of the file system, so clocks that differ between computers mislead nobody.
"""

import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

TOUCH_SECONDS, STALE_SECONDS = 5.0, 30.0
_AGAIN_SECONDS = 0.5
_SILENT = frozenset(
    getattr(errno, name)
    for name in (
        *("ESTALE", "EIO", "ETIMEDOUT", "EAGAIN", "ENOTCONN", "ESHUTDOWN", "ECONNRESET", "ECONNREFUSED"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETUNREACH", "EREMOTEIO"),
    )
    if hasattr(errno, name)
)
"""What a file system on the network says while it does not answer."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def store_may_be_silent(*, or_full: bool = False) -> Iterator[None]:
    """Pass over a file system that does not answer just now: nobody ends for that.

    Args:
        or_full: or that has no room, where what is to be written is only how far something is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (_SILENT | _FULL if or_full else _SILENT):
            raise


def insist(write: Callable[[], object]) -> None:
    """Write to a file system that may not answer just now, or be full: again and again for half a minute; then raise what it says."""
    deadline = time.monotonic() + STALE_SECONDS
    while True:
        try:
            write()
            return
        except OSError as error:
            if error.errno not in _SILENT | _FULL or time.monotonic() > deadline:
                raise
        time.sleep(_AGAIN_SECONDS)


def file_system_time(folder: Path) -> float:
    """The time by the clock of the file system that a folder is on; by the one of this computer if that takes no time either."""
    probe = folder / f".clock-{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError as error:
        if error.errno not in _FULL:
            raise
        try:
            # It has no room for a file; most have room for the time of one that is there.
            os.utime(folder)
            return folder.stat().st_mtime
        except OSError:
            return time.time()
    finally:
        probe.unlink(missing_ok=True)


@cache
def _here() -> str:
    """This computer, since it was started."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"


def is_held(path: Path) -> bool:
    """Whether somebody holds a lease, or the file system does not answer just now: then nobody is to end for it."""
    try:
        with store_may_be_silent():
            # The clock first: where the file system stands still in between, the lease is touched before it is looked at.
            now = file_system_time(path.parent)
            # Opened, since what NFS remembers of a file is asked for anew only then.
            descriptor = os.open(path, os.O_RDONLY)
            try:
                touched = os.fstat(descriptor).st_mtime
            finally:
                os.close(descriptor)
            return now - touched < STALE_SECONDS
    except FileNotFoundError:
        return False
    return True


def is_held_elsewhere(path: Path) -> bool:
    """Whether another computer holds a lease; here `flock` tells, which the kernel frees when a process dies."""
    try:
        return not path.read_text().startswith(_here()) and is_held(path)
    except FileNotFoundError:
        return False


def _is_left_over(path: Path) -> bool:
    """Whether a lease is there that is nobody's. One that is gone is none: its name may be the next one's a moment later."""
    try:
        mine = path.read_text().startswith(_here())
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return False
    return mine or file_system_time(path.parent) - touched >= STALE_SECONDS


def _remove_stale(path: Path) -> None:
    """Remove a lease that is nobody's. Of those that find it so one does it, and looks again before: the next one may hold it."""
    if not _is_left_over(path):
        return
    taking = path.with_name(f"{path.name}.taking")
    try:
        taking.mkdir()
    except FileExistsError:
        _remove_left_over(taking)
        return
    try:
        if _is_left_over(path):
            path.unlink(missing_ok=True)
    finally:
        with suppress(FileNotFoundError):
            taking.rmdir()


def _remove_left_over(taking: Path) -> None:
    """Remove the mark of somebody who ended while a stale lease was taken, if it was seen to be old."""
    try:
        touched = taking.stat().st_mtime
    except FileNotFoundError:
        return
    if file_system_time(taking.parent) - touched >= STALE_SECONDS:
        with suppress(OSError):
            taking.rmdir()


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Hold a lease while the body runs; yields whether it was had. The caller holds the lock of this computer for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        yield False
        return
    own = f"{_here()} {uuid.uuid4().hex}"
    os.write(descriptor, own.encode())
    os.close(descriptor)
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(TOUCH_SECONDS):
            with suppress(OSError):
                if path.read_text() != own:
                    return  # this computer slept, and another one has it now
                os.utime(path)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join()
        with suppress(FileNotFoundError):
            if path.read_text() == own:
                path.unlink()
