"""Importing large libraries, and leaving a process that has them, in less time."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's garbage collector rests in the body, and passes over what was made there from then on.

    For imports of torch, transformers or DeepSpeed: they make a million objects that stay, and a fifth of their time would
    go into looking through them for garbage.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def leave_at_once() -> None:
    """Let this process end without a last search for garbage, which takes a fifth of the life of a short one."""
    # Called first, so that it is done last: what others do at the end they still do.
    atexit.register(gc.freeze)


@contextmanager
def without(name: str) -> Iterator[None]:
    """Imports in the body find no package of this name unless it was imported before."""
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[name]
