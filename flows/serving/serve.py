"""serve: a Prefect server, the deployments and a worker from one command, on loopback; they end together."""

import asyncio
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from flows.recipe.recipe import AnyRecipe
from flows.runs.record import runs_folder
from flows.serving.flow_process import SERVE_VARIABLE
from flows.serving.served import Served
from flows.serving.server import (
    API_URL,
    DEFAULTS,
    LOOPBACK,
    address_of,
    locked_environment,
    make_home,
    new_auth_string,
    wait_until_up,
)
from flows.views.report import REPORTS_VARIABLE
from model.errors import InputError, StageFailed
from tasks.engine import process
from tasks.engine.store import Store

if TYPE_CHECKING:
    from prefect.schedules import Schedule

POOL, AUTH = "cpu", "auth"
_VACUUM = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
_STOP_SECONDS, _LOOK_SECONDS = 30.0, 0.5
_PR_SET_CHILD_SUBREAPER = 36
_DATABASE_FAULTS = (
    ("Can't locate revision", "was written by a newer Prefect than this one ({version})"),
    ("file is not a database", "is not a SQLite database"),
    ("database disk image is malformed", "is damaged"),
)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--port {port} on {host} cannot be used ({error}): give another --port"
            ) from None


def _database_fault(log: str, home: Path) -> InputError | None:
    for sign, sentence in _DATABASE_FAULTS:
        if sign in log:
            database = os.environ.get("PREFECT_SERVER_DATABASE_CONNECTION_URL") or str(home / "prefect.db")
            told = sentence.format(version=version("prefect"))
            return InputError(
                f"the database {database.split('@')[-1]} {told}: move it away to begin with an empty one"
            )
    return None


def _wait_for_server(served: Served, url: str, home: Path) -> None:
    def fault() -> Exception:
        return _database_fault(served.tail(), home) or StageFailed(
            "the Prefect server did not start", log=served.tail(), log_path=str(served.log_path)
        )

    wait_until_up(url, served.child, fault)


def flow_processes() -> list[psutil.Process]:
    """The processes of flow runs among the descendants of this process."""
    processes = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "flows.serving.flow_process" in child.cmdline():
                processes.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return processes


def _adopt_orphans() -> None:
    """Become the parent of a flow run whose worker is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _reap(known: set[int]) -> None:
    """Collect adopted processes that have ended."""
    for child in psutil.Process().children():
        if child.pid not in known and child.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(child.pid, os.WNOHANG)


def _stop(served: dict[str, Served], say: Callable[[str], None]) -> None:
    running = flow_processes()
    if "worker" in served and served["worker"].child.poll() is None:
        served["worker"].child.terminate()  # it takes no new run, and waits for those that it has
    if running:
        say(f"ending {len(running)} runs: training saves first")
        for child in running:
            with suppress(psutil.NoSuchProcess):  # it may have ended since it was listed
                child.terminate()
        _, alive = psutil.wait_procs(running, timeout=_STOP_SECONDS)
        for child in alive:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    for name in ("worker", "server"):
        if name in served:
            process.stop(served[name].child, 10.0)


def read_auth_string(home: Path) -> tuple[str, bool]:
    """What signs in to the server of a store, and whether it was made just now; kept in a file of its owner only."""
    path = home / AUTH
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new_auth_string())
    except FileExistsError:
        path.chmod(0o600)
        return path.read_text().strip(), False
    return path.read_text(), True


def _environment(home: Path, host: str, port: int, auth: str) -> dict[str, str]:
    """What server, worker and runs find in their environment."""
    return {
        **DEFAULTS,
        **locked_environment(home, host, port, auth),
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
        # Runs of the last 90 days, unless the environment says otherwise; Prefect's own default keeps them for ever.
        _VACUUM: os.environ.get(_VACUUM, "events,flow_runs"),
        REPORTS_VARIABLE: f"{address_of(host, port)}/reports",
        SERVE_VARIABLE: str(os.getpid()),
    }


@contextmanager
def _only_serve_of(store: Store, home: Path, host: str, port: int) -> Iterator[None]:
    """Hold the right to serve a store.

    Raises:
        InputError: if another `serve` uses it, or the port is taken.
    """
    make_home(home)
    address = home / "serve"
    with store.lock("serve", "", wait=False) as held:
        if not held:
            other = address.read_text() if address.exists() else "somewhere"
            raise InputError(
                f"another `scratchlm serve` uses the store {store.root}, at {other}: end it, or give another --store"
            )
        _check_port(host, port)
        address.write_text(address_of(host, port))
        try:
            yield
        finally:
            address.unlink(missing_ok=True)


def serve(
    recipes: list[AnyRecipe],
    store: Path,
    host: str,
    port: int,
    schedule: Callable[[], "Schedule | None"],
    say: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        recipes: a pretrain deployment for each, and a retrain deployment if its split is by hash.
        store: folder of results; server database and logs are in its folder prefect.
        host: address that the server listens on; with any other than loopback, other computers can reach it.
        port: of the server.
        schedule: gives the one of the retrain deployments, once the environment is as Prefect needs it.
        say: shows a line to a person.

    Raises:
        InputError: if another `serve` uses the store, the port is taken, or the database is not usable.
        StageFailed: if server or worker do not start or end again and again.
    """
    opened = Store(store)
    home = opened.root / "prefect"
    stopping: list[int] = []
    with ExitStack() as stack:
        stack.enter_context(_only_serve_of(opened, home, host, port))
        auth, is_new = read_auth_string(home)
        environment = _environment(home, host, port, auth)
        runs_folder(opened).mkdir(parents=True, exist_ok=True)
        os.environ.update(environment)
        when = schedule()
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, lambda n, _: stopping.append(n))
        _adopt_orphans()
        served: dict[str, Served] = {}
        stack.callback(_stop, served, say)

        def start(name: str, *arguments: str) -> Served:
            command = [sys.executable, "-m", f"flows.serving.{name}", *arguments]
            served[name] = Served(name, command, environment, home / f"{name}.log")
            return served[name]

        say(f"starting the Prefect server (its log is {home / 'server.log'})")
        server = start("server", str(port), "--host", host, "--reports", str(runs_folder(opened)))
        _wait_for_server(server, environment[API_URL], home)
        names = _deploy(recipes, opened.root, when)
        start("worker", POOL)
        say(f"deployments: {', '.join(names)}")
        if is_new or host != LOOPBACK:
            say(f"sign in with {auth}")
        say(f"what signs in is kept in {home / AUTH}")
        if host != LOOPBACK:
            say(
                f"the server listens on {host}: what is sent is not encrypted, and whoever signs in can run code here"
            )
        say(f"Prefect UI: {address_of(host, port)}   (Ctrl-C ends server, worker and runs)")
        while not stopping:
            for child in served.values():
                if child.look_after():
                    say(f"the {child.name} ended and was started again (its log is {child.log_path})")
            _reap({child.child.pid for child in served.values()})
            time.sleep(_LOOK_SECONDS)
        say("stopping")


def _deploy(recipes: list[AnyRecipe], store: Path, schedule: "Schedule | None") -> list[str]:
    """Put pool, automation and deployments on the server; Prefect is imported only now, when the environment is set."""
    from flows.serving.deployments import create_automations, create_deployments, create_work_pool

    async def deploy() -> list[str]:
        await create_work_pool(POOL, Path.cwd())
        await create_automations()
        return await create_deployments(recipes, store, POOL, schedule)

    return asyncio.run(deploy())
