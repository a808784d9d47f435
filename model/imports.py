"""Importing large libraries in less time."""

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


@contextmanager
def without_mlflow() -> Iterator[None]:
    """Imports in the body find no MLflow unless it was imported before.

    For imports of DeepSpeed: its autotuner, which nobody uses here, imports MLflow where there is one, and that takes as
    long as all else of it.
    """
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["mlflow"]
