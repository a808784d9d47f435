"""The Prefect server of a run: the one that PREFECT_API_URL names, or one of its own that cannot outlive it.

Prefect's own temporary server stays behind when its parent is killed; this one is bound to
its parent by the kernel. `python -m flows.serving.server PORT [RUNS]` is that process; with the folder of
runs it shows their reports too.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from model.errors import InputError, StageFailed
from tasks.engine import process

API_URL = "PREFECT_API_URL"
_START_SECONDS, _STOP_SECONDS = 120.0, 10.0

DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_CLI_PROMPT": "false",
}
"""No outside traffic, and no second report of what the terminal shows."""


def is_up(url: str) -> bool:
    """Whether a Prefect server answers at an API address."""
    import httpx

    try:
        return httpx.get(f"{url.rstrip('/')}/health", timeout=5).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


@contextmanager
def prefect_server() -> Iterator[None]:
    """Make sure that a Prefect server answers while the body runs. Prefect must not be imported before.

    Raises:
        InputError: if PREFECT_API_URL names a server that does not answer.
        StageFailed: if an own server does not start.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if url := os.environ.get(API_URL):
        if not is_up(url):
            raise InputError(
                f"{API_URL} is {url!r}, and no Prefect server answers there: start it, or unset {API_URL}"
            )
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        environment = process.child_environment({"PREFECT_UI_ENABLED": "0"})
        command = [sys.executable, "-m", "flows.serving.server", str(port)]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        url = os.environ[API_URL] = f"http://127.0.0.1:{port}/api"
        try:
            import prefect  # noqa: F401  (a second or two, while the server starts)

            deadline = time.monotonic() + _START_SECONDS
            while not is_up(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise StageFailed("the Prefect server of this run did not start", log=log.read()[-3000:])
                time.sleep(0.1)
            yield
        finally:
            os.environ.pop(API_URL, None)
            process.stop(server, _STOP_SECONDS)


def main(port: int, runs: str | None = None) -> None:
    """Serve Prefect on loopback, and below /reports the folder of runs."""
    process.adopt()
    import uvicorn
    from prefect.server.api.server import create_app
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    app = create_app()
    if runs:
        # Before the routes of the UI, which takes every path.
        app.router.routes.insert(0, Mount("/reports", StaticFiles(directory=runs, check_dir=False)))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:3])
