"""For processes under attack: a disk that is full after some bytes, and a clock that is wrong by some seconds.

FAULT_DISK_BYTES    what this process can still write through Python's files
FAULT_CLOCK_SECONDS added to the time of day
"""

import builtins
import errno
import io
import os
import time

if "FAULT_DISK_BYTES" in os.environ:
    left = [int(os.environ["FAULT_DISK_BYTES"])]
    real_open = io.open

    class Full(io.FileIO):
        """A file on a disk that fills up."""

        def write(self, data):  # type: ignore[no-untyped-def]
            """As many bytes as fit; then the error of a full disk."""
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device", self.name)
            return super().write(data)

    def limited_open(
        file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
    ):  # type: ignore[no-untyped-def]
        """`open`, for files that are written to."""
        if not set(mode) & set("wax") or "+" in mode:
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Full(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if "b" in mode and buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    io.open = builtins.open = limited_open  # type: ignore[assignment]

if "FAULT_CLOCK_SECONDS" in os.environ:
    shift = float(os.environ["FAULT_CLOCK_SECONDS"])
    real_time, real_time_ns = time.time, time.time_ns
    time.time = lambda: real_time() + shift
    time.time_ns = lambda: real_time_ns() + int(shift * 1e9)
