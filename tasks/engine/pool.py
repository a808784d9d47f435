"""Workers of this machine: a pool of processes."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tasks.engine import process
from tasks.engine.job import build_shard_of


def build_in_pool(spec_path: Path, positions: Sequence[int], n_workers: int) -> Iterator[bool]:
    """Build the shards at `positions` in processes that end with this one; yields for each whether it was built."""
    pool = ProcessPoolExecutor(
        min(len(positions), n_workers),
        multiprocessing.get_context("spawn"),
        initializer=process.die_with_parent,
        initargs=(os.getpid(),),
    )
    try:
        for job in as_completed(pool.submit(build_shard_of, spec_path, position) for position in positions):
            yield job.result()
    finally:
        pool.shutdown(cancel_futures=True)
