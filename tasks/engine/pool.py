"""Workers of this machine: a pool of processes."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tasks.engine import process
from tasks.engine.job import build_shard_of


@contextmanager
def pool(spec_path: Path, n_workers: int) -> Iterator[Callable[[int], "Future[bool]"]]:
    """Processes that build shards of a spec file; yields a function that hands over a position. They end with this process."""
    executor = ProcessPoolExecutor(
        n_workers,
        multiprocessing.get_context("spawn"),
        initializer=process.die_with_parent,
        initargs=(os.getpid(),),
    )
    try:
        yield lambda position: executor.submit(build_shard_of, spec_path, position)
    finally:
        executor.shutdown(cancel_futures=True)
