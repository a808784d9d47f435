"""deployments/prefect.yaml on a server of one's own: prefect deploy, a process worker, the accelerator's limit, secrets."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT
from tests.end_to_end.conftest import RECIPE, Line, running_server
from tests.end_to_end.serving import TERMINAL
from tests.waiting import ASKING_A_SERVER, processes_of, wait_until

pytestmark = pytest.mark.end_to_end

PREFECT = str(Path(sys.executable).parent / "prefect")
DEPLOYMENTS = ("pretrain/mine", "retrain/mine", "finetune/mine-tuned", "evaluate/mine", "evaluate/any")
SLOT = {"names": ["accelerator"], "slots": 1}


class OwnServer:
    """A server with the deployments of the file, and a process worker for each pool."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.api = httpx.Client(base_url=f"{line.server}/", timeout=60)

    def prefect(self, *arguments: str, cwd: Path = ROOT) -> str:
        environment = self.line.environment()
        done = subprocess.run([PREFECT, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def worker(self, pool: str) -> subprocess.Popen:
        return subprocess.Popen(
            [PREFECT, "worker", "start", "--pool", pool],
            cwd=self.line.root,
            env=self.line.environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask the server, again while it says 503: SQLite is busy, and nothing was done."""
        answers: list[httpx.Response] = []

        def is_answered() -> bool:
            answers.append(self.api.request(method, path, **options))
            return answers[-1].status_code != 503

        wait_until(is_answered, path)
        return answers[-1]

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self.ask("POST", path, json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def start(self, name: str, job_variables: dict[str, Any] | None = None, **parameters: object) -> str:
        deployment = self.ask("GET", f"deployments/name/{name}").json()
        given = {**deployment["parameters"], "store": str(self.line.store), **parameters}
        body = {"parameters": given, "job_variables": job_variables or {}}
        return self.post(f"deployments/{deployment['id']}/create_flow_run", body)["id"]

    def state(self, run: str) -> dict:
        return self.ask("GET", f"flow_runs/{run}").json()["state"]

    def end(self, run: str) -> dict:
        wait_until(lambda: self.state(run)["type"] in TERMINAL, "the end of the run", None, ASKING_A_SERVER)
        return self.state(run)

    def tasks(self, run: str) -> dict[str, dict]:
        rows = self.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "limit": 200})
        return {row["name"].removesuffix(" (cached)"): row for row in rows}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that no other test has: limits hold for all that runs on a server."""
    with running_server(tmp_path_factory.mktemp("alone")) as url:
        yield url


@pytest.fixture
def own(line: Line, alone: str, tmp_path: Path) -> Iterator[OwnServer]:
    copy = Line(tmp_path / "copy", alone)
    shutil.copytree(line.root, copy.root, symlinks=True)
    made = OwnServer(copy)
    for pool in ("cpu", "gpu"):
        made.prefect("work-pool", "create", pool, "--type", "process")
    made.prefect("global-concurrency-limit", "create", "accelerator", "--limit", "1")
    # Whoever deploys has a folder that the workers have not.
    deployer = tmp_path / "deployer"
    shutil.copytree(ROOT / "deployments", deployer / "deployments")
    made.prefect("--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml", cwd=deployer)
    shutil.rmtree(deployer)
    workers = [made.worker(pool) for pool in ("cpu", "gpu")]
    yield made
    for worker in workers:
        # Prefect's own worker does not always end when it is asked to.
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    deployments = [made.ask("GET", f"deployments/name/{name}").json()["id"] for name in DEPLOYMENTS]
    for path in (
        *(f"deployments/{deployment}" for deployment in deployments),
        "work_pools/cpu",
        "work_pools/gpu",
        "v2/concurrency_limits/accelerator",
    ):
        assert made.ask("DELETE", path).is_success, path


def make_secret(own: OwnServer, name: str, value: str) -> None:
    block_type = own.ask("GET", "block_types/slug/secret").json()["id"]
    schema = own.post("block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [block_type]}}})[
        0
    ]["id"]
    block = {"name": name, "data": {"value": value}, "block_type_id": block_type, "block_schema_id": schema}
    own.post("block_documents/", block)


def test_deployed_flows_run_on_workers_that_lack_the_deployers_folder(own: OwnServer):
    make_secret(own, "hub-token", "canary-job-variable")
    recipe = json.loads(json.dumps({**RECIPE, "train_model": {**RECIPE["train_model"], "tokens": 12_288}}))
    recipe["ingest"]["sources"][0]["path"] = str(own.line.corpus)
    secret = {"env": {"HF_TOKEN": "{{ prefect.blocks.secret.hub-token }}"}}
    # Somebody else has the accelerator.
    own.post("v2/concurrency_limits/increment", {**SLOT, "mode": "concurrency"})
    training = own.start("pretrain/mine", secret, recipe=recipe)
    nowhere = own.start("evaluate/any", model="nowhere")

    def waits() -> bool:
        states = {name: (task["state"] or {}).get("type") for name, task in own.tasks(training).items()}
        return (states.get("tokenize"), states.get("train_model")) == ("COMPLETED", "RUNNING")

    wait_until(waits, "a training that waits for the accelerator", None, ASKING_A_SERVER)
    assert not list((own.line.store / "work").glob("train_model-*/step-*"))
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in processes_of(own.line.store)]
    assert any(b"HF_TOKEN=canary-job-variable" in environment for environment in environments)

    own.post("v2/concurrency_limits/decrement", SLOT)
    assert own.end(training)["type"] == "COMPLETED", own.state(training)["message"]
    assert "there is no folder 'nowhere'" in own.end(nowhere)["message"]
    assert own.ask("GET", "v2/concurrency_limits/accelerator").json()["active_slots"] == 0
    # Limits on tags, and the history of a stage, go by these.
    tasks = own.tasks(training)
    assert set(tasks["train_model"]["tags"]) == {"stage:train_model", "accelerator"}
    assert tasks["clean"]["tags"] == []  # a hit takes no slot
    assert tasks["train_model"]["task_key"].split("-")[0] == tasks["clean"]["task_key"].split("-")[0]
    kept = [path for path in own.line.store.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not any(b"canary-job-variable" in path.read_bytes() for path in kept)


def test_a_pool_that_a_person_edited_stays_as_it_is(alone: str):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolUpdate
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.serving.deployments import create_work_pool

    async def edit() -> int | None:
        await create_work_pool("edited", Path.cwd())
        async with get_client() as client:
            await client.update_work_pool("edited", WorkPoolUpdate(concurrency_limit=3))
            await create_work_pool("edited", Path.cwd())
            return (await client.read_work_pool("edited")).concurrency_limit

    with temporary_settings({PREFECT_API_URL: alone}):
        assert asyncio.run(edit()) == 3


def test_a_flow_of_ones_own_gets_what_ours_came_to(line: Line, tmp_path: Path):
    copy = Line(tmp_path / "copy", line.server)
    shutil.copytree(line.root, copy.root, symlinks=True)
    program = tmp_path / "mine.py"
    program.write_text(
        "import asyncio, json, sys\n"
        "from prefect import flow\n"
        "from flows.prefect_flows import pretrain\n"
        "from flows.recipe.read import load_recipe\n"
        "from pathlib import Path\n\n"
        "@flow\n"
        "async def mine(recipe: str, store: str) -> dict:\n"
        "    result = await pretrain(load_recipe(Path(recipe)), store=store)\n"
        "    return {'run': result.name, 'model': str(result.model), 'bits': result.bits_per_byte,\n"
        "            'scores': result.benchmarks, 'verdict': result.verdict}\n\n"
        "print(json.dumps(asyncio.run(mine('recipe.yaml', sys.argv[1]))))\n"
    )
    command = [sys.executable, str(program), str(copy.store)]
    done = subprocess.run(command, cwd=copy.root, env=copy.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["bits"] == line.first["results"]["bits_per_byte"]
    assert result["scores"] == line.first["results"]["benchmarks"]
    assert result["verdict"] == "Completed"
    assert Path(result["model"], "config.json").is_file()
    assert (copy.store / "runs" / result["run"] / "report.html").is_file()
