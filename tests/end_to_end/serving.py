"""A running `scratchlm serve`, and what a person does in its UI, through the API that the UI uses."""

import os
import signal
import subprocess
import time
import uuid
from contextlib import suppress
from typing import Any

import httpx
import psutil

from tasks.engine.process import free_port
from tests.end_to_end.conftest import Line, give_database
from tests.waiting import ASKING_A_SERVER, HANGING_SECONDS, processes_of, wait_until

TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Serve:
    """`scratchlm serve` for the recipe of a line."""

    def __init__(self, line: Line, *options: str, **environment: str) -> None:
        self.line, self.port = line, free_port()
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api", timeout=60)
        self.out = line.root / "serve.out"
        env = {**line.environment(), **environment}
        env.pop("PREFECT_API_URL", None)
        if "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in env:
            give_database(line.store / "prefect")
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                line.command("serve", "recipe.yaml", "--port", str(self.port), *options),
                cwd=line.root,
                env=env,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        wait_until(lambda: "Prefect UI:" in self.said() or self.process.poll() is not None, "the server")
        assert self.process.poll() is None, self.said()
        self.sign_in()

    def sign_in(self) -> None:
        """As the UI does: the auth string of the store, and a token against requests that other pages make."""
        user, password = (self.line.store / "prefect" / "auth").read_text().split(":")
        self.api.auth = httpx.BasicAuth(user, password)
        client = str(uuid.uuid4())
        token = self.api.get("/csrf-token", params={"client": client}).json()["token"]
        self.api.headers.update({"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client})

    def said(self) -> str:
        return self.out.read_text()

    def post(self, path: str, body: dict[str, Any], code: int = 200) -> Any:
        for _ in range(60):
            answer = self.api.post(path, json=body)
            # SQLite was locked: Prefect asks its clients to come again, and its own do.
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(1)
        assert answer.status_code in (code, 201), answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        return self.api.get(path).json()

    def deployment(self, name: str) -> dict[str, Any]:
        return self.get(f"/deployments/name/{name}")

    def start(self, name: str, **recipe: Any) -> str:
        """Start a run of a deployment, with other sections of the recipe; returns its id."""
        deployment = self.deployment(name)
        parameters = {**deployment["parameters"], "recipe": {**deployment["parameters"]["recipe"], **recipe}}
        return self.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]

    def state(self, run: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{run}")["state"]

    def end(self, run: str) -> dict[str, Any]:
        """The final state of a run."""

        def ended() -> Any:
            try:
                state = self.state(run)
            except httpx.HTTPError:
                return None
            return state if state["type"] in TERMINAL else None

        return wait_until(ended, f"the end of {run}", every_seconds=ASKING_A_SERVER)

    def stages(self, run: str) -> dict[str, str]:
        """State name by task."""
        tasks = self.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "limit": 200})
        return {
            task["name"].removesuffix(" (cached)"): task["state"]["name"] for task in tasks if task["state"]
        }

    def processes(self, module: str) -> list[int]:
        """Process ids of `python -m MODULE` of this serve; not of what one of them has forked and not yet made another."""
        parents: dict[int, int] = {}
        for pid in processes_of(self.line.store):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if f"-m {module}" in " ".join(process.cmdline()):
                    parents[pid] = process.ppid()
        return [pid for pid, parent in parents.items() if parent not in parents]

    def stop(self) -> None:
        """SIGTERM, until it has ended."""
        self.api.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(HANGING_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise
