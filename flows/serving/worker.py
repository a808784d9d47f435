"""The worker of `serve`: python -m flows.serving.worker POOL, bound to its parent."""

import asyncio
import os
import sys

from model.imports import uncollected
from tasks.engine import process


async def work(pool: str) -> None:
    """Start the flow runs of a work pool until SIGTERM."""
    with uncollected():
        from prefect.utilities.processutils import setup_signal_handlers_worker
        from prefect.workers.process import ProcessWorker

    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    await ProcessWorker(work_pool_name=pool, name="serve", prefetch_seconds=5).start(printer=print)


if __name__ == "__main__":
    process.adopt()
    try:
        asyncio.run(work(sys.argv[1]))
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
