"""A flow that runs in this process, to its end. Importing this module imports Prefect."""

import asyncio
from typing import Any

from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogHandler

from flows import prefect_flows
from flows.runs.result import RunResult


def run_here(name: str, **parameters: Any) -> RunResult:
    """Run the flow of this name; returns what it returns.

    Raises:
        KeyboardInterrupt: on Ctrl-C and on SIGTERM, once the running stages have ended.
    """
    try:
        return asyncio.run(getattr(prefect_flows, name)(**parameters))
    except (TerminationSignal, asyncio.CancelledError):
        raise KeyboardInterrupt from None
    finally:
        # While the server is still there; later they would end up as noise in the terminal.
        APILogHandler().flush()
