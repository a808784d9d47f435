"""The Prefect server of a run: the one that PREFECT_API_URL names, or one of its own that cannot outlive it.

Prefect's own temporary server stays behind when its parent is killed; this one is bound to
its parent by the kernel. `python -m flows.serving.server PORT [--host HOST] [--reports RUNS]` is that process;
with the folder of runs it shows their reports too.

Whoever may start a flow run can run code here, so nobody may without the auth string: not another account of this
computer, and not a web page that a person of this computer looks at.
"""

import argparse
import base64
import hmac
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from flows.serving.served import Served
from model.errors import InputError, StageFailed
from model.imports import uncollected
from tasks.engine import process

API_URL = "PREFECT_API_URL"
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
_AUTH_SERVER, _AUTH_CLIENT = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
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


def new_auth_string() -> str:
    """USER:PASSWORD for Prefect's basic authentication, with 192 random bits."""
    return f"scratchlm:{secrets.token_urlsafe(24)}"


def make_home(home: Path) -> None:
    """Make the folder of a server, for its owner only: the database holds the key of its Secret blocks."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)


def locked_environment(home: Path, host: str, port: int, auth: str) -> dict[str, str]:
    """How Prefect's server and its clients are told who may talk to it, and that its database is in `home`."""
    return {
        "PREFECT_HOME": str(home),
        API_URL: f"{address_of(host, port)}/api",
        _AUTH_SERVER: auth,
        _AUTH_CLIENT: auth,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}:{port}" for name in names_of(host)),
    }


def names_of(host: str) -> list[str]:
    """Names and addresses under which a server is asked that listens on `host`."""
    own = [] if host == LOOPBACK else [host, *own_names()]
    return [LOOPBACK, "localhost", *(name for name in own if name != EVERYWHERE)]


def address_of(host: str, port: int) -> str:
    """Where this computer reaches a server that listens on `host`."""
    return f"http://{LOOPBACK if host == EVERYWHERE else host}:{port}"


def own_names() -> list[str]:
    """Names and addresses under which other computers may know this one."""
    import psutil

    addresses = {
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family is socket.AF_INET
    }
    return sorted({socket.gethostname(), socket.getfqdn(), *addresses} - {"127.0.0.1", "localhost"})


@contextmanager
def prefect_server(store: Path) -> Iterator[None]:
    """Make sure that a Prefect server answers while the body runs. Prefect must not be imported before.

    An own one keeps its database in the store, one for each version of Prefect. It is started again when it dies: clients
    ask again meanwhile, so that it costs no run.

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
    port, home = process.free_port(), store / "prefect" / f"runs-{version('prefect')}"
    make_home(home)
    own = locked_environment(home, LOOPBACK, port, new_auth_string())
    before = {name: os.environ.get(name) for name in (API_URL, _AUTH_CLIENT)}

    def restore() -> None:
        for name, former in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: former} if former is not None else {})

    with ExitStack() as stack:
        stack.callback(restore)
        with FileLock(home / "start.lock"):  # two at once would migrate one database together
            command = [sys.executable, "-m", __name__, str(port)]
            environment = {**own, "PREFECT_UI_ENABLED": "0"}
            server = Served("server of this run", command, environment, home / "server.log")
            os.environ.update({name: own[name] for name in before})

            def fault() -> StageFailed:
                return StageFailed("the Prefect server of this run did not start", log=server.tail())

            try:
                with uncollected():
                    import prefect  # noqa: F401  (a second or two, while the server starts)

                wait_until_up(own[API_URL], server.child, fault)
            except BaseException:
                process.stop(server.child, _STOP_SECONDS)
                raise
            stack.enter_context(server.looked_after())
        yield


def wait_until_up(url: str, server: "subprocess.Popen[bytes]", fault: Callable[[], Exception]) -> None:
    """Wait for a server that was started; raises what `fault` gives if it ended, or does not answer for long."""
    deadline = time.monotonic() + _START_SECONDS
    while not is_up(url):
        if server.poll() is not None or time.monotonic() > deadline:
            raise fault()
        time.sleep(0.1)


def _protected(app: Any, auth: str) -> Any:
    """An ASGI app that answers only those who send the auth string; a browser asks its person for it."""
    expected = b"Basic " + base64.b64encode(auth.encode())

    async def protected(scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, expected):
            await app(scope, receive, send)
            return
        challenge = {"WWW-Authenticate": 'Basic realm="scratchlm", charset="UTF-8"'}
        answer = PlainTextResponse(
            "sign in with the auth string that `scratchlm serve` names", 401, challenge
        )
        await answer(scope, receive, send)

    return protected


def main(port: int, host: str, runs: str | None) -> None:
    """Serve Prefect, and below /reports the folder of runs, to those who have the auth string of the environment."""
    process.adopt()
    auth = os.environ[_AUTH_SERVER]
    with uncollected():
        import uvicorn
        from prefect.server.api.server import create_app
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Mount
        from starlette.staticfiles import StaticFiles

        app = create_app()
    if runs:
        # Before the routes of the UI, which takes every path.
        reports = _protected(StaticFiles(directory=runs, check_dir=False), auth)
        app.router.routes.insert(0, Mount("/reports", reports))
    # A page of another site whose name was made to point here sends that name. Around the app and not in it: the
    # server's own services call it under a name of theirs.
    uvicorn.run(
        TrustedHostMiddleware(app, allowed_hosts=names_of(host)), host=host, port=port, log_level="error"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default=LOOPBACK)
    parser.add_argument("--reports")
    given = parser.parse_args()
    main(given.port, given.host, given.reports)
