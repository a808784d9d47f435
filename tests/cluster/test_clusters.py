"""Real clusters: the same bytes as here, whoever is killed, and nothing stays behind; and training on two nodes.

One file, so that one worker of pytest has the clusters, and starts each once.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from tests.cluster.conftest import Nodes
from tests.conftest import Toy
from tests.end_to_end.conftest import RECIPE, Line
from tests.waiting import HANGING_SECONDS, assert_no_process_of, processes_of, wait_until

pytestmark = pytest.mark.end_to_end

NUMBERS = {f"n{i:02d}": i for i in range(12)}


def toy_digests(built: dict) -> dict[str, str]:
    return {name: entry["digest"] for name, entry in built.items()}


SLEEP = '    time.sleep(float(os.environ.get("TOY_DELAY", "0")))'


def slowly(toy: Toy, seconds: float) -> None:
    """Let each shard take so long. An environment reaches no worker of Ray, the code does."""
    toy.edit("stages", SLEEP, f"    time.sleep({seconds})")


def start(toy: Toy, nodes: Nodes) -> subprocess.Popen:
    return subprocess.Popen(
        toy.command(cluster=nodes.settings),
        env=toy.environment(**nodes.environment),
        cwd=toy.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def jobs_in_queue(nodes: Nodes) -> list[str]:
    done = subprocess.run(
        ["squeue", "-h", "-o", "%j"], env={**os.environ, **nodes.environment}, capture_output=True, text=True
    )
    return [name for name in done.stdout.split() if name.startswith("scratchlm")]


def building(toy: Toy, nodes: Nodes) -> list[Any]:
    """What of a cluster is at work on shards of a toy: jobs in the queue and processes."""
    if nodes.settings["kind"] == "ray":
        names = [process.info["cmdline"] or [""] for process in psutil.process_iter(["cmdline"])]
        return [name for name in names if name[0].startswith("ray::build_one")]
    return [*jobs_in_queue(nodes), *processes_of(toy.store)]


def test_shards_are_the_same_bytes_as_here(toy: Toy, nodes: Nodes, tmp_path: Path):
    toy.write(**NUMBERS)
    here = toy.run(store=tmp_path / "here")
    there = toy.run(cluster=nodes.settings, env=nodes.environment)
    assert toy_digests(there) == toy_digests(here)
    assert there["double"]["built"] == 12
    again = toy.run(cluster=nodes.settings, env=nodes.environment)
    assert all(entry["cached"] for entry in again.values())


def test_the_fault_of_a_shard_comes_home_with_its_place_and_its_log(toy: Toy, nodes: Nodes):
    toy.write(bad="crash", **NUMBERS)
    told = toy.run(cluster=nodes.settings, env=nodes.environment, fails=True)
    assert re.search(r"double: shard \d+ on \S+: ", told["failed"])
    assert "`scratchlm task double RECIPE --shard" in told["failed"]
    assert "ZeroDivisionError: a number that cannot be" in told["failed"]
    assert "in double" in told["log"]
    toy.write(bad=7)
    toy.run(cluster=nodes.settings, env=nodes.environment)


def test_a_driver_that_is_killed_leaves_nothing_and_the_next_goes_on(toy: Toy, nodes: Nodes, tmp_path: Path):
    toy.write(**NUMBERS)
    here = toy.run(store=tmp_path / "here")
    closed = tmp_path / "closed"
    toy.edit(
        "stages",
        SLEEP,
        f"    while os.path.exists({str(closed)!r}):\n        time.sleep(0.1)\n    time.sleep(0.5)",
    )
    driver = start(toy, nodes)
    shards = toy.store / "shards" / "double"
    wait_until(lambda: shards.exists() and len(list(shards.iterdir())) >= 2, "two shards", driver)
    closed.touch()
    driver.kill()
    driver.wait()
    # Whoever is in the middle of a shard, which takes for ever now, ends without anybody's help.
    wait_until(lambda: not building(toy, nodes), "the end of all that works for it")
    ready = len(list(shards.iterdir()))
    assert ready < 12
    closed.unlink()
    there = toy.run(cluster=nodes.settings, env=nodes.environment)
    assert toy_digests(there) == toy_digests(here)
    assert there["double"]["built"] == 12 - ready
    assert not building(toy, nodes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_asked_to_end_takes_its_jobs_with_it(toy: Toy, nodes: Nodes, number: int):
    toy.write(**NUMBERS)
    slowly(toy, 1.0)
    driver = start(toy, nodes)
    shards = toy.store / "shards" / "double"
    wait_until(lambda: shards.exists() and list(shards.iterdir()), "a shard", driver)
    driver.send_signal(number)
    driver.wait()
    if nodes.settings["kind"] == "slurm":
        wait_until(lambda: not jobs_in_queue(nodes), "an empty queue")
    wait_until(lambda: not list((toy.store / "locks").glob("*.lease")), "the end of the lease")
    assert len(list(shards.iterdir())) < 12


def test_a_worker_that_is_killed_costs_its_shard(toy: Toy, nodes: Nodes, tmp_path: Path):
    toy.write(**NUMBERS)
    here = toy.run(store=tmp_path / "here")
    kill_once = tmp_path / "killed"
    toy.edit(
        "stages",
        SLEEP,
        f"    mark = {str(kill_once)!r}\n"
        "    if not os.path.exists(mark):\n"
        "        open(mark, 'w').close()\n"
        "        os.kill(os.getpid(), 9)",
    )
    there = toy.run(cluster=nodes.settings, env=nodes.environment)
    assert kill_once.exists()
    assert toy_digests(there) == toy_digests(here)


MODEL_STAGES = ("train_model", "export_model", "evaluate_held_out", "evaluate_model")


def on(line: Line, nodes: Nodes, folder: Path) -> tuple[Line, dict[str, str]]:
    """The line with a store of its own that has no text yet, and a machine file of the cluster."""
    made = Line(folder / "line", line.server)
    made.root.mkdir()
    shutil.copytree(line.corpus, made.corpus)
    made.write_recipe(machine={"threads": 1, "device": "cpu", "cluster": nodes.settings})
    line.lend(made, "index_benchmarks", *MODEL_STAGES)
    return made, {**made.environment(), **nodes.environment}


def run(made: Line, environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        made.command("run", "recipe.yaml"),
        cwd=made.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stages(line: Line) -> dict[str, Any]:
    """Stages of the newest run."""
    return json.loads((line.store / "runs" / "latest" / "run.json").read_text())["stages"]


def test_a_recipe_is_the_same_on_a_cluster_that_loses_a_node(line: Line, nodes: Nodes, tmp_path: Path):
    made, environment = on(line, nodes, tmp_path)
    process = run(made, environment)
    cleaned = made.store / "shards" / "clean"
    wait_until(lambda: cleaned.exists() and list(cleaned.iterdir()), "a cleaned shard", process)
    if nodes.cluster:
        nodes.cluster.remove_node(nodes.cluster.list_all_nodes()[-1], allow_graceful=False)
    else:
        down = ["scontrol", "update", "nodename=n2", "state=down", "reason=test"]
        subprocess.run(down, env=environment, check=True)
    printed = process.communicate()[0]
    if nodes.cluster:
        nodes.cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    else:
        # A node that answers again may be back by itself (ReturnToService), which scontrol calls invalid.
        subprocess.run(["scontrol", "update", "nodename=n2", "state=resume"], env=environment)
    assert process.returncode == 0, printed
    here, there = stages(line), stages(made)
    assert {name: entry["digest"] for name, entry in there.items()} == {
        name: entry["digest"] for name, entry in here.items()
    }
    assert {name for name, entry in there.items() if entry["cached"]} == {"index_benchmarks", *MODEL_STAGES}


def test_doctor_examines_every_node(line: Line, nodes: Nodes, tmp_path: Path):
    made, environment = on(line, nodes, tmp_path)
    machine = made.root / "machine.yaml"
    machine.write_text(yaml.safe_dump({"cluster": nodes.settings}))
    done = subprocess.run(
        made.command("doctor", "--cluster", str(machine)),
        cwd=made.root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(f"{nodes.settings['kind']} node") >= 2
    assert "as here" in done.stdout


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
        made.command("join", "--again"),
        cwd=made.root,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        join.send_signal(signal.SIGINT)
        join.wait(HANGING_SECONDS)


def stop_node(line: Line) -> list[int]:
    """Stop all processes of the computer that has joined, as if it were switched off: its connections stay open."""

    def is_of_node(pid: int) -> bool:
        try:
            lineage = [psutil.Process(pid), *psutil.Process(pid).parents()]
            return any("join" in process.cmdline() for process in lineage)
        except psutil.NoSuchProcess:
            return False

    stopped = [pid for pid in processes_of(line.store) if is_of_node(pid)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    return stopped


def prepare(line: Line, where: Nodes, **machine: Any) -> dict[str, str]:
    own = {"threads": 1, "device": "cpu", "ranks": 2, "nodes": 2, "cluster": where.settings, **machine}
    line.write_recipe(train_model=LONGER, machine=own, evaluate_model={"tasks": []})
    return {**line.environment(), **where.environment}


def trained(line: Line) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights, and what training and the held-out text came to."""
    results = {
        name: line.store / "artifacts" / name / stages(line)[name]["key"]
        for name in ("train_model", "evaluate_held_out")
    }
    metrics = [json.loads((result / "manifest.json").read_text())["metrics"] for result in results.values()]
    weights = load_file(results["train_model"] / "out" / "model.safetensors")
    return weights, {**metrics[0], "held_out": metrics[1]["bits_per_byte"]}


def assert_trained_as(line: Line, on_one: tuple[dict[str, np.ndarray], dict[str, Any]]) -> None:
    """Weights and held-out likelihood are those of one computer, though a rank was lost on the way."""
    weights, metrics = trained(line)
    assert metrics["resumed_from_step"]
    for name, value in on_one[0].items():
        np.testing.assert_allclose(weights[name], value, rtol=1e-4, atol=1e-5)
    assert metrics["held_out"] == pytest.approx(on_one[1]["held_out"], rel=1e-4)
    assert_no_process_of(line.store)


@pytest.fixture(scope="session")
def on_one(
    line: Line, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What two ranks on one node come to."""
    own = copy(line, tmp_path_factory.mktemp("one"))
    environment = prepare(own, Nodes({"kind": "local"}), nodes=0)
    process = run(own, environment)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return trained(own)


def copy(line: Line, folder: Path) -> Line:
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
        if b"rank" in command and b"tasks.engine.ranks" in command:
            found.append(pid)
    return found


def run_into_training(made: Line, environment: dict[str, str]) -> subprocess.Popen:
    """A run that has saved twice."""
    process, work = run(made, environment), made.store / "work"
    wait_until(lambda: len(list(work.glob("train_model-*/step-*"))) >= 2, "two checkpoints", process)
    return process


def test_two_nodes_that_lose_a_rank_train_as_one_does(
    line: Line, on_one: tuple[dict[str, np.ndarray], dict[str, Any]], kind: Nodes, tmp_path: Path
):
    made = copy(line, tmp_path)
    environment = prepare(made, kind, checkpoint_every_seconds=0)
    with joined(made, environment, kind):
        process = run_into_training(made, environment)
        pids = wait_until(lambda: ranks_of(made.store), "ranks", process)
        os.kill(pids[-1], signal.SIGKILL)
        printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert re.search(r"rank \d on \S+ \((load|step|validation|save)\)", printed)
    assert_trained_as(made, on_one)


def test_a_training_that_makes_place_for_another_job_goes_on_in_the_next(
    line: Line, on_one: tuple[dict[str, np.ndarray], dict[str, Any]], slurm_nodes: Nodes, tmp_path: Path
):
    made = copy(line, tmp_path)
    environment = prepare(made, slurm_nodes, checkpoint_every_seconds=0)
    process = run_into_training(made, environment)
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap", "srun sleep 1"]
    subprocess.run(urgent, env=environment, cwd=tmp_path, check=True)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    key = stages(made)["train_model"]["key"]
    log = (made.store / "artifacts" / "train_model" / key / "log.txt").read_text()
    assert "the cluster ended the job before the work was done: it goes on in another one" in log
    assert_trained_as(made, on_one)


def test_a_driver_that_is_killed_in_the_middle_of_a_training_leaves_no_node(
    line: Line, on_one: tuple[dict[str, np.ndarray], dict[str, Any]], kind: Nodes, tmp_path: Path
):
    made = copy(line, tmp_path)
    environment = prepare(made, kind, checkpoint_every_seconds=0)
    with joined(made, environment, kind):
        process = run_into_training(made, environment)
        process.kill()
        process.communicate()
        wait_until(lambda: not ranks_of(made.store), "the end of the ranks")
        if kind.settings["kind"] == "slurm":
            wait_until(lambda: not jobs_in_queue(kind), "an empty queue")
        process = run(made, environment)
        printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert_trained_as(made, on_one)


def test_a_computer_that_is_switched_off_is_named_and_another_takes_its_place(
    line: Line, on_one: tuple[dict[str, np.ndarray], dict[str, Any]], tmp_path: Path
):
    made, alone = copy(line, tmp_path), Nodes({"kind": "local"})
    environment = prepare(made, alone, checkpoint_every_seconds=0)
    former = subprocess.Popen(made.command("join"), cwd=made.root, env=environment, stdout=subprocess.DEVNULL)
    process = run_into_training(made, environment)
    stopped = stop_node(made)
    assert former.pid in stopped
    # It is missed, and not for ranks that make no step: for that there are fifteen minutes.
    teams = wait_until(
        lambda: two if len(two := [*made.store.glob("work/train_model-*/team-*")]) == 2 else None, "a team"
    )
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    former.wait()
    with joined(made, environment, alone):
        printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert re.search(r"was not heard of for 30 seconds.*there ran rank \d on", printed, re.DOTALL)
    assert len(teams) == 2
    assert_trained_as(made, on_one)
