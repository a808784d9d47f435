"""Training on two nodes: the same as two ranks on one, and a rank that is killed costs the way back to its checkpoint."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cluster.conftest import Nodes
from tests.end_to_end.conftest import RECIPE, Line
from tests.waiting import assert_no_process_of, processes_of, wait_until

pytestmark = pytest.mark.end_to_end

LONGER = {**RECIPE["train_model"], "tokens": 61_440, "seed": 5}


@pytest.fixture(params=["joined", "slurm", "ray"])
def kind(request: pytest.FixtureRequest) -> Nodes:
    """Each way to have two nodes."""
    if request.param == "joined":
        return Nodes({"kind": "local"})
    return request.getfixturevalue(f"{request.param}_nodes")


@contextmanager
def joined(made: Line, environment: dict[str, str], nodes: Nodes) -> Iterator[None]:
    """Another computer that joins, where somebody has to."""
    if nodes.settings["kind"] != "local":
        yield
        return
    join = subprocess.Popen(
        made.command("join", "--again"), cwd=made.root, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        join.send_signal(signal.SIGINT)
        join.wait()


def prepare(line: Line, where: Nodes, **machine: Any) -> dict[str, str]:
    own = {"threads": 1, "device": "cpu", "ranks": 2, "nodes": 2, "cluster": where.settings, **machine}
    line.write_recipe(train_model=LONGER, machine=own, evaluate_model={"tasks": []})
    return {**line.environment(), **where.environment}


def trained(line: Line) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    record = json.loads((line.store / "runs" / "latest" / "run.json").read_text())
    result = line.store / "artifacts" / "train_model" / record["stages"]["train_model"]["key"]
    return load_file(result / "out" / "model.safetensors"), json.loads(
        (result / "manifest.json").read_text()
    )["metrics"]


def run(line: Line, environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        line.command("run", "recipe.yaml"),
        cwd=line.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="session")
def on_one(line: Line, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The weights of two ranks on one node."""
    own = copy(line, tmp_path_factory.mktemp("one"))
    environment = prepare(own, Nodes({"kind": "local"}), nodes=0)
    process = run(own, environment)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return trained(own)[0]


def copy(line: Line, folder: Path) -> Line:
    import shutil

    made = Line(folder / "line", line.server)
    shutil.copytree(line.root, made.root, symlinks=True)
    return made


def ranks_of(folder: Path) -> list[int]:
    """Process ids of the ranks that train there."""
    found = []
    for pid in processes_of(folder):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"rank" in command and b"tasks.training.ranks" in command:
            found.append(pid)
    return found


def test_two_nodes_that_lose_a_rank_train_as_one_does(
    line: Line, on_one: dict[str, np.ndarray], kind: Nodes, tmp_path: Path
):
    made = copy(line, tmp_path)
    environment = prepare(made, kind, checkpoint_every_seconds=0)
    with joined(made, environment, kind):
        process = run(made, environment)
        work = made.store / "work"
        wait_until(lambda: len(list(work.glob("train_model-*/step-*"))) >= 2, "two checkpoints", process)
        pids = wait_until(lambda: ranks_of(made.store), "ranks", process)
        os.kill(pids[-1], signal.SIGKILL)
        printed = process.communicate()[0]
    assert process.returncode == 0, printed
    weights, metrics = trained(made)
    assert metrics["resumed_from_step"]
    for name, value in on_one.items():
        np.testing.assert_allclose(weights[name], value, rtol=1e-4, atol=1e-5)
    assert_no_process_of(made.store)
