"""serve: a Prefect server, the deployments and a worker from one command, on loopback; they end together."""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import psutil

from flows.engine import SERVE_VARIABLE
from flows.recipe import AnyRecipe
from flows.runs import runs_folder
from flows.server import API_URL, DEFAULTS, REPORTS_VARIABLE, is_up
from tasks import process
from tasks.errors import InputError, StageFailed
from tasks.store.store import Store

if TYPE_CHECKING:
    from prefect.schedules import Schedule

POOL = "cpu"
_START_SECONDS, _STOP_SECONDS, _LOOK_SECONDS = 120.0, 30.0, 0.5
_RESTARTS, _RESTART_WINDOW_SECONDS = 5, 300.0
_PR_SET_CHILD_SUBREAPER = 36
_DATABASE_FAULTS = (
    ("Can't locate revision", "was written by a newer Prefect than this one ({version})"),
    ("file is not a database", "is not a SQLite database"),
    ("database disk image is malformed", "is damaged"),
)


def make_schedule(cron: str | None, every: str | None, rrule: str | None, timezone: str) -> "Schedule | None":
    """The schedule that at most one of the first three says.

    Raises:
        InputError: if there are two, or one is not valid.
    """
    given = {name: value for name, value in (("--cron", cron), ("--every", every), ("--rrule", rrule)) if value}
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are given: choose one")
    if not given:
        return None
    from prefect.schedules import Cron, Interval, RRule

    ((option, value),) = given.items()
    try:
        ZoneInfo(timezone)
        if every:
            found = re.fullmatch(r"(\d+)\s*([smhd])", every)
            if not found or not int(found[1]):
                raise ValueError("an interval is a number with s, m, h or d, such as 12h")
            units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
            return Interval(timedelta(**{units[found[2]]: int(found[1])}), timezone=timezone)
        return Cron(value, timezone=timezone) if cron else RRule(value, timezone=timezone)
    except Exception as error:  # croniter, dateutil, pydantic and zoneinfo each raise their own
        sentence = " ".join(str(error).split())[:200]
        raise InputError(f"{option} {value!r} with --timezone {timezone!r} is no schedule: {sentence}") from None


class Served:
    """One of the two children of `serve`: started again when it dies."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.name, self.arguments, self.environment, self.log_path = name, arguments, environment, log
        self.starts: list[float] = []
        self.child = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts.append(time.monotonic())
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                self.arguments, env=process.child_environment(self.environment), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def look_after(self) -> bool:
        """Start it again if it has ended; returns whether it had.

        Raises:
            StageFailed: if it ends again and again.
        """
        if self.child.poll() is None:
            return False
        now = time.monotonic()
        if len([start for start in self.starts if now - start < _RESTART_WINDOW_SECONDS]) > _RESTARTS:
            raise StageFailed(f"the {self.name} ended {_RESTARTS + 1} times", log=self.tail(), log_path=str(self.log_path))
        self.child = self._start()
        return True

    def tail(self) -> str:
        """The end of what it printed."""
        return self.log_path.read_text(errors="replace")[-3000:]


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port} on 127.0.0.1 cannot be used ({error}): give another --port") from None


def _database_fault(log: str, home: Path) -> InputError | None:
    from importlib.metadata import version

    for sign, sentence in _DATABASE_FAULTS:
        if sign in log:
            database = os.environ.get("PREFECT_SERVER_DATABASE_CONNECTION_URL") or str(home / "prefect.db")
            told = sentence.format(version=version("prefect"))
            return InputError(f"the database {database.split('@')[-1]} {told}: move it away to begin with an empty one")
    return None


def _wait_for_server(served: Served, url: str, home: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not is_up(url):
        if served.child.poll() is not None or time.monotonic() > deadline:
            fault = _database_fault(served.tail(), home)
            raise fault or StageFailed("the Prefect server did not start", log=served.tail(), log_path=str(served.log_path))
        time.sleep(0.2)


def flow_processes() -> list[psutil.Process]:
    """The processes of flow runs among the descendants of this process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "flows.engine" in child.cmdline():
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


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
            child.terminate()
        _, alive = psutil.wait_procs(running, timeout=_STOP_SECONDS)
        for child in alive:
            child.kill()
    for name in ("worker", "server"):
        if name in served:
            process.stop(served[name].child, 10.0)


def serve(
    recipes: list[AnyRecipe], store: Path, port: int, schedule: Callable[[], "Schedule | None"], say: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        recipes: a pretrain deployment for each, and a retrain deployment if its split is by hash.
        store: folder of results; server database and logs are in its folder prefect.
        port: of the server, on 127.0.0.1.
        schedule: gives the one of the retrain deployments, once the environment is as Prefect needs it.
        say: shows a line to a person.

    Raises:
        InputError: if another `serve` uses the store, the port is taken, or the database is not usable.
        StageFailed: if server or worker do not start or end again and again.
    """
    opened = Store(store)
    home = opened.root / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    url, ui = f"http://127.0.0.1:{port}/api", f"http://127.0.0.1:{port}"
    environment = {
        **DEFAULTS,
        "PREFECT_HOME": str(home),
        API_URL: url,
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
        REPORTS_VARIABLE: f"{ui}/reports",
        SERVE_VARIABLE: str(os.getpid()),
    }
    stopping: list[int] = []
    with ExitStack() as stack:
        if not stack.enter_context(opened.lock("serve", "", wait=False)):
            other = (home / "serve").read_text() if (home / "serve").exists() else "somewhere"
            raise InputError(
                f"another `scratchlm serve` uses the store {opened.root}, at {other}: end it, or give another --store"
            )
        _check_port(port)
        (home / "serve").write_text(ui)
        stack.callback((home / "serve").unlink, missing_ok=True)
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
            command = [sys.executable, "-m", f"flows.{name}", *arguments]
            served[name] = Served(name, command, environment, home / f"{name}.log")
            return served[name]

        say(f"starting the Prefect server (its log is {home / 'server.log'})")
        _wait_for_server(start("server", str(port), str(runs_folder(opened))), url, home)
        names = _deploy(recipes, opened.root, when)
        start("worker", POOL)
        say(f"deployments: {', '.join(names)}")
        say(f"Prefect UI: {ui}   (Ctrl-C ends server, worker and runs)")
        while not stopping:
            for child in served.values():
                if child.look_after():
                    say(f"the {child.name} ended and was started again (its log is {child.log_path})")
            _reap({child.child.pid for child in served.values()})
            time.sleep(_LOOK_SECONDS)
        say("stopping")


def _deploy(recipes: list[AnyRecipe], store: Path, schedule: "Schedule | None") -> list[str]:
    import asyncio

    from flows.deploy import create_automation, create_deployments, create_work_pool

    async def deploy() -> list[str]:
        await create_work_pool(POOL, Path.cwd())
        await create_automation()
        return await create_deployments(recipes, store, POOL, schedule)

    found: Any = asyncio.run(deploy())
    return found
