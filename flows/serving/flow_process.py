"""The process of a flow run that `serve` started: Prefect's engine, ended when `serve` ends.

It outlives its worker, so that a run goes on when the worker is killed; it does not outlive
`serve`, whose process id is in the environment.
"""

import os
import runpy
import select
import signal
import threading
import time

from model.imports import leave_at_once, uncollected

SERVE_VARIABLE = "SCRATCHLM_SERVE"
_GRACE_SECONDS = 40.0


def end_with(process_id: int) -> None:
    """Send this process SIGTERM when another one ends, and SIGKILL if it is still there after a while."""

    def watch(descriptor: int) -> None:
        select.select([descriptor], [], [])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        descriptor = os.pidfd_open(process_id)
    except ProcessLookupError:
        raise SystemExit("serve has ended already") from None
    threading.Thread(target=watch, args=(descriptor,), daemon=True).start()


if __name__ == "__main__":
    leave_at_once()
    if SERVE_VARIABLE in os.environ and hasattr(os, "pidfd_open"):
        end_with(int(os.environ[SERVE_VARIABLE]))
    with uncollected():
        import prefect.flow_engine  # noqa: F401  (most of what follows)
    runpy.run_module("prefect.engine", run_name="__main__")
