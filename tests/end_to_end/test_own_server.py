"""deployments/prefect.yaml on a server of one's own: prefect deploy, a process worker, the accelerator's limit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT
from tests.end_to_end.conftest import RECIPE, Line
from tests.end_to_end.serving import TERMINAL, wait_until

pytestmark = pytest.mark.end_to_end

PREFECT = str(Path(sys.executable).parent / "prefect")


def test_deployed_flows_run_on_a_process_worker(line: Line, tmp_path: Path):
    copy = Line(tmp_path / "copy", line.server)
    shutil.copytree(line.root, copy.root, symlinks=True)
    api = httpx.Client(base_url=f"{line.server}/", timeout=30)

    def prefect(*arguments: str) -> str:
        done = subprocess.run(
            [PREFECT, *arguments], cwd=ROOT, env=copy.environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(name: str, **parameters: object) -> str:
        deployment = api.get(f"deployments/name/{name}").json()
        given = {**deployment["parameters"], "store": str(copy.store), **parameters}
        answer = api.post(f"deployments/{deployment['id']}/create_flow_run", json={"parameters": given})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def state(run: str) -> dict:
        return api.get(f"flow_runs/{run}").json()["state"]

    for pool in ("cpu", "gpu"):
        prefect("work-pool", "create", pool, "--type", "process")
    prefect("global-concurrency-limit", "create", "accelerator", "--limit", "1")
    prefect("--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    workers = [
        subprocess.Popen(
            [PREFECT, "worker", "start", "--pool", pool],
            cwd=copy.root,
            env=copy.environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for pool in ("cpu", "gpu")
    ]
    try:
        recipe = json.loads(
            json.dumps({**RECIPE, "train_model": {**RECIPE["train_model"], "tokens": 12_288}})
        )
        recipe["ingest"]["sources"][0]["path"] = str(copy.corpus)
        training, nowhere = start("pretrain/mine", recipe=recipe), start("evaluate/any", model="nowhere")
        limit = "v2/concurrency_limits/accelerator"
        wait_until(
            lambda: api.get(limit).json()["active_slots"] == 1, what="a training that holds the accelerator"
        )
        for run in (training, nowhere):
            wait_until(lambda run=run: state(run)["type"] in TERMINAL, 180, "the end of the run")
        assert state(training)["type"] == "COMPLETED", state(training)["message"]
        assert "there is no folder 'nowhere'" in state(nowhere)["message"]
        assert api.get(limit).json()["active_slots"] == 0
    finally:
        for worker in workers:
            os.killpg(worker.pid, signal.SIGINT)
        for worker in workers:
            worker.wait(30)
        for name in ("pretrain/mine", "retrain/mine", "finetune/mine-tuned", "evaluate/any"):
            prefect("deployment", "delete", name)
