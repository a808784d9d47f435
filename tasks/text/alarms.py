"""A time limit for work that does not look at a clock itself."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TooSlow(BaseException):
    """Something took longer than it may. No Exception, so that what catches those does not catch it."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `TooSlow` in the body after some seconds; in the main thread only, where every shard is built."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise TooSlow

    former = signal.signal(signal.SIGALRM, ring)
    # Again and again, for a step that goes on all the same.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
