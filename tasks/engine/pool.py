"""Helpers of this machine: processes that build shards beside the one that was asked to."""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tasks.engine import process
from tasks.engine.failures import describe_with_traceback
from tasks.engine.job import build_shard_of

Told = bool | dict[str, Any]
"""Whether a helper built a shard that was not there, or how it failed, with the traceback."""


def _build(spec_path: Path, position: int) -> Told:
    """Build one shard. Errors are told in words: not every exception finds its way back from another process."""
    try:
        return build_shard_of(spec_path, position)
    except Exception as error:
        return describe_with_traceback(error)


@contextmanager
def helpers(spec_path: Path, n_helpers: int, waiting: "deque[int]") -> Iterator["SimpleQueue[Future[Told]]"]:
    """Processes that take positions from `waiting` one after another, whatever this process does meanwhile.

    Yields where they tell of each. None takes another after a failure; they end with the body, which waits for the shards that
    they are at.
    """
    executor = ProcessPoolExecutor(
        n_helpers,
        multiprocessing.get_context("spawn"),
        initializer=process.die_with_parent,
        initargs=(os.getpid(),),
    )
    told: SimpleQueue[Future[Told]] = SimpleQueue()

    def hand_over() -> None:
        try:
            position = waiting.popleft()
        except IndexError:  # nothing is left
            return
        executor.submit(_build, spec_path, position).add_done_callback(go_on)

    def go_on(job: "Future[Told]") -> None:
        told.put(job)
        if not job.cancelled() and not job.exception() and isinstance(job.result(), bool):
            hand_over()

    try:
        for _ in range(n_helpers):
            hand_over()
        yield told
    finally:
        waiting.clear()
        executor.shutdown(cancel_futures=True)
