"""serve under faults: real server, real worker, real training."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.runs.champions import promote_model
from flows.serving.server import own_names
from tasks.engine.process import free_port
from tasks.engine.store import Store
from tests.end_to_end.conftest import RECIPE, Line
from tests.end_to_end.serving import Serve
from tests.waiting import ASKING_A_SERVER, HANGING_SECONDS, assert_no_process_of, wait_until

pytestmark = pytest.mark.end_to_end

N_STEPS = 120
TRAINING = {**RECIPE["train_model"], "tokens": 512 * N_STEPS, "evaluations": 1}
EVERY_STEP = {**RECIPE["machine"], "checkpoint_every_seconds": 0}


def training(seed: int) -> dict[str, Any]:
    """Sections of a recipe for a training of its own."""
    return {"train_model": {**TRAINING, "seed": seed}, "machine": EVERY_STEP}


def work_folders(line: Line) -> set[Path]:
    return set((line.store / "work").glob("train_model-*"))


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def start_training(served: Serve, seed: int) -> tuple[str, Path]:
    """A run that has saved twice: its id, and the folder of its checkpoints."""
    before = work_folders(served.line)
    run = served.start("pretrain/tiny", **training(seed))
    folder = wait_until(lambda: next(iter(work_folders(served.line) - before), None), what="training")
    wait_until(lambda: len(checkpoints(folder)) == 2, what="two checkpoints")
    return run, folder


def resumed_from(served: Serve, folder: Path) -> int | None:
    """Step from which a training went on that has been published; it had `folder` for its checkpoints."""
    published = served.line.store / "artifacts" / "train_model" / folder.name.removeprefix("train_model-")
    return json.loads((published / "manifest.json").read_text())["metrics"]["resumed_from_step"]


def train_again(served: Serve, seed: int, folder: Path) -> int | None:
    """Start the same training once more, and cancel the rest of the run; returns the step from which it went on."""
    run = served.start("pretrain/tiny", **training(seed))
    wait_until(
        lambda: served.stages(run).get("train_model") == "Built",
        what="the training",
        every_seconds=ASKING_A_SERVER,
    )
    cancel(served, run)
    return resumed_from(served, folder)


def cancel(served: Serve, run: str) -> None:
    """What the button in the UI does."""
    served.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": False})


@pytest.fixture(scope="module")
def served(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A server on a copy of the line, in which only training is to do."""
    copy = Line(tmp_path_factory.mktemp("serve") / "copy", None)
    shutil.copytree(line.root, copy.root, symlinks=True)
    made = Serve(copy)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def quiet(served: Serve) -> str:
    """A retraining that ended because there is nothing new since the champion."""
    first = min(path.name for path in (served.line.store / "runs").glob("*-tiny-*"))
    promote_model(Store(served.line.store), "tiny", first, "for a test", former=None)
    run = served.start("retrain/tiny")
    assert served.end(run)["name"] == "Nothing new"
    assert served.stages(run) == {}
    return run


@pytest.fixture(scope="module")
def silent(served: Serve, quiet: str) -> str:
    """A run whose worker and whose own process were killed."""
    run, _ = start_training(served, 1)
    os.kill(served.processes("flows.serving.worker")[0], signal.SIGKILL)
    os.kill(served.processes("flows.serving.flow_process")[0], signal.SIGKILL)
    return run


def test_deployments_are_forms_that_refuse_what_is_wrong(served: Serve):
    deployment = served.deployment("retrain/tiny")
    schema = deployment["parameter_openapi_schema"]
    tokens = schema["definitions"]["TrainConfig"]["properties"]["tokens"]
    assert tokens["minimum"] == 1
    assert "in tokens" in tokens["description"]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    for parameters, sentence in (
        ({"recipe": {**RECIPE, "train_modell": {}}}, "'train_modell' was unexpected"),
        ({"recipe": {**RECIPE, "train_model": {"tokens": 0}}}, "0 is less than the minimum of 1"),
        ({"store": 3}, "3 is not of type 'string'"),
    ):
        parameters = {**deployment["parameters"], **parameters}
        answer = served.post(
            f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters}, code=409
        )
        assert sentence in answer["detail"]


def test_what_only_the_whole_recipe_can_tell_is_one_sentence_too(served: Serve, silent: str):
    run = served.start("pretrain/tiny", model={**RECIPE["model"], "n_heads": 3})
    state = served.end(run)
    assert state["type"] == "FAILED"
    assert "d_model (32) must be divisible by n_heads (3)" in state["message"]


def test_cancelled_training_saves_and_the_next_run_goes_on(served: Serve, silent: str):
    run, folder = start_training(served, 2)
    cancel(served, run)
    assert served.end(run)["type"] == "CANCELLED"
    wait_until(lambda: not served.processes("flows.serving.flow_process"), "the end of its process")
    assert not served.processes("tasks.engine.ranks")
    assert not served.processes("tasks.engine.child")
    saved = int(checkpoints(folder)[-1].name.removeprefix("step-"))
    assert train_again(served, 2, folder) == saved


def test_a_killed_worker_and_a_killed_server_leave_the_run_to_itself(served: Serve, silent: str):
    run, folder = start_training(served, 3)
    (process,) = served.processes("flows.serving.flow_process")
    (worker,) = served.processes("flows.serving.worker")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: set(served.processes("flows.serving.worker")) - {worker}, what="another worker")
    os.kill(served.processes("flows.serving.server")[0], signal.SIGKILL)
    state = served.end(run)
    assert state["type"] == "COMPLETED"
    assert served.processes("flows.serving.flow_process") in ([process], [])
    assert resumed_from(served, folder) is None
    assert "the worker ended and was started again" in served.said()


def test_a_killed_flow_is_crashed_and_the_next_one_goes_on(served: Serve, silent: str):
    run, folder = start_training(served, 4)
    os.kill(served.processes("flows.serving.flow_process")[0], signal.SIGKILL)
    assert served.end(run)["type"] == "CRASHED"
    assert not served.processes("tasks.engine.ranks")
    saved = int(checkpoints(folder)[-1].name.removeprefix("step-"))
    assert train_again(served, 4, folder) == saved


def test_two_runs_that_want_the_same_train_once(served: Serve, silent: str):
    runs = [served.start("pretrain/tiny", **training(6)) for _ in range(2)]
    done = {"Built", "Cached"}
    wait_until(
        lambda: all(served.stages(run).get("train_model") in done for run in runs),
        what="both trainings",
        every_seconds=ASKING_A_SERVER,
    )
    assert {served.stages(run)["train_model"] for run in runs} == done
    for run in runs:
        cancel(served, run)


def test_a_run_without_a_heartbeat_is_crashed(served: Serve, silent: str):
    state = served.end(silent)
    assert state["type"] == "CRASHED"
    assert "heartbeat" in state["message"]


def test_a_run_that_ended_under_a_name_of_ours_is_not(served: Serve, quiet: str, silent: str):
    """Of two runs, both silent for as long, the automation changes the one that did not end."""
    served.end(silent)
    assert served.state(quiet)["name"] == "Nothing new"

    def told(*outcomes: str) -> str:
        names = [f"prefect.automation.action.{outcome}" for outcome in outcomes]
        fired = {"event": {"name": names}}
        return json.dumps(served.post("/events/filter", {"filter": fired})["events"])

    # On a busy machine the server may do it, and hear too late of itself that it is done: then it tries again, and fails.
    acted = ("executed", "failed")
    wait_until(lambda: silent in told(*acted), "the action on the silent run", None, ASKING_A_SERVER)
    assert quiet not in told("executed")


def test_the_evaluate_deployment_takes_a_run_or_a_folder(served: Serve):
    deployment = served.deployment("evaluate/any")
    export = next((served.line.store / "artifacts" / "export_model").iterdir()) / "out"
    first = min(path.name for path in (served.line.store / "runs").glob("*-tiny-*"))
    benchmarks = {"tasks": ["sciq"], "limit": 10}
    for model, expected in ((first, "COMPLETED"), (str(export), "COMPLETED"), ("nowhere", "FAILED")):
        parameters = {**deployment["parameters"], "model": model, "benchmarks": benchmarks}
        run = served.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})[
            "id"
        ]
        state = served.end(run)
        assert state["type"] == expected, state["message"]
    assert "there is no folder 'nowhere'" in state["message"]


def test_the_page_of_a_run(served: Serve):
    run = served.start("pretrain/tiny")
    assert served.end(run)["type"] == "COMPLETED"
    assert set(served.stages(run).values()) == {"Cached"}
    artifacts = {
        found["key"]: found
        for found in served.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
    }
    assert {"summary", "waterfall", "loss"} <= set(artifacts)
    assert artifacts["loss"]["data"].startswith("data:image/png;base64,")
    assert "bits per byte" in artifacts["summary"]["data"]
    link = artifacts["summary"]["data"].split("[report](")[1].rstrip(")")
    assert served.api.get(link).text.startswith("<!doctype html>")
    assert httpx.get(link, timeout=HANGING_SECONDS).status_code == httpx.codes.UNAUTHORIZED


def test_nobody_gets_in_without_the_auth_string(served: Serve):
    """Neither another account of this computer, nor a page of another site in a browser of this one."""
    url = f"http://127.0.0.1:{served.port}"
    home = served.line.store / "prefect"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "auth").stat().st_mode) == 0o600
    auth = served.api.auth
    token = {name: value for name, value in served.api.headers.items() if name.startswith("prefect-csrf")}
    for path in ("/api/flow_runs/filter", "/api/block_documents/filter", "/api/deployments/filter"):
        assert (
            httpx.post(url + path, json={}, headers=token, timeout=HANGING_SECONDS).status_code
            == httpx.codes.UNAUTHORIZED
        )
    # A page of another site whose name is made to point here sends its own name.
    there = {"Host": f"evil.example:{served.port}"}
    assert (
        httpx.get(
            f"{url}/api/deployments/name/pretrain/tiny", headers=there, auth=auth, timeout=HANGING_SECONDS
        ).status_code
        == 400
    )
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{url}/api/flow_runs/filter", headers=asked, timeout=HANGING_SECONDS)
    assert "access-control-allow-origin" not in preflight.headers
    own = {**asked, "Origin": url}
    assert (
        httpx.options(f"{url}/api/flow_runs/filter", headers=own, timeout=HANGING_SECONDS).headers[
            "access-control-allow-origin"
        ]
        == url
    )
    # A form of another page, which a browser sends with what its person has signed in with.
    answer = httpx.post(f"{url}/api/flow_runs/filter", content="{}", auth=auth, timeout=HANGING_SECONDS)
    assert (answer.status_code, "CSRF" in answer.text) == (403, True)
    for address in (name for name in own_names() if name.replace(".", "").isdigit()):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{address}:{served.port}/api/health", timeout=5)


def test_whoever_starts_a_run_chooses_neither_program_nor_environment(served: Serve, tmp_path: Path):
    deployment, mark = served.deployment("evaluate/any"), tmp_path / "mark"
    chosen = {"command": f"touch {mark}", "env": {"PYTHONPATH": str(tmp_path)}, "working_dir": str(tmp_path)}
    (tmp_path / "sitecustomize.py").write_text(f"open({str(mark)!r}, 'w')\n")
    given = {"parameters": {**deployment["parameters"], "model": "nowhere"}, "job_variables": chosen}
    run = served.post(f"/deployments/{deployment['id']}/create_flow_run", given)["id"]
    assert "there is no folder 'nowhere'" in served.end(run)["message"]
    assert not mark.exists()
    given = {"parameters": {**deployment["parameters"], "model": "nowhere", "secrets": {"PYTHONPATH": "any"}}}
    run = served.post(f"/deployments/{deployment['id']}/create_flow_run", given)["id"]
    assert "'PYTHONPATH' is not the name of a secret" in served.end(run)["message"]


def test_a_second_serve_is_told_of_the_first(served: Serve):
    done = served.line.call("serve", "recipe.yaml", "--port", str(free_port()), code=2)
    assert (
        f"another `scratchlm serve` uses the store {served.line.store}, at http://127.0.0.1:{served.port}"
        in done.stderr
    )


def test_sigterm_ends_all_of_it_in_the_middle_of_a_run(served: Serve):
    _, folder = start_training(served, 7)
    served.stop()
    assert served.process.returncode == 0
    assert_no_process_of(served.line.store)
    saved = int(checkpoints(folder)[-1].name.removeprefix("step-"))
    served.line.write_recipe(**training(7))
    served.line.call("task", "train_model", "recipe.yaml")
    assert resumed_from(served, folder) == saved


def test_a_taken_port(tmp_path: Path):
    line = Line(tmp_path, None)
    line.write_recipe()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = line.call("serve", "recipe.yaml", "--port", port, code=2)
    assert f"--port {port} on 127.0.0.1 cannot be used" in done.stderr


@pytest.mark.parametrize("kind", ["newer", "garbage"])
def test_a_database_that_cannot_be_used(kind: str, tmp_path: Path):
    line = Line(tmp_path, None)
    line.write_recipe()
    database = line.store / "prefect" / "prefect.db"
    database.parent.mkdir(parents=True)
    if kind == "garbage":
        database.write_text("not a database, but long enough to be taken for one " * 100)
    else:
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
            connection.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
    done = line.call("serve", "recipe.yaml", "--port", str(free_port()), code=2)
    assert "newer Prefect" in done.stderr if kind == "newer" else "is not a SQLite database" in done.stderr
    assert "move it away" in done.stderr


def test_schedules_are_checked(tmp_path: Path):
    line = Line(tmp_path, None)
    line.write_recipe()
    port = ("--port", str(free_port()))
    for options, sentence in (
        (("--cron", "61 * * * *"), "--cron '61 * * * *'"),
        (("--every", "often"), "such as 12h"),
        (("--rrule", "FREQ=SOMETIMES"), "--rrule"),
        (("--every", "1h", "--timezone", "Mars/Phobos"), "Mars/Phobos"),
        (("--every", "1h", "--cron", "0 3 * * *"), "choose one"),
    ):
        done = line.call("serve", "recipe.yaml", *port, *options, code=2)
        assert sentence in done.stderr
