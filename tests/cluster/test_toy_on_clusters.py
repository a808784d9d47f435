"""The toy graph on real clusters: the same bytes as here, whoever is killed, and nothing of it stays behind."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cluster.conftest import Nodes
from tests.conftest import Toy
from tests.waiting import wait_until

pytestmark = pytest.mark.end_to_end

NUMBERS = {f"n{i:02d}": i for i in range(12)}


def digests(built: dict) -> dict[str, str]:
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


def test_shards_are_the_same_bytes_as_here(toy: Toy, nodes: Nodes, tmp_path: Path):
    toy.write(**NUMBERS)
    here = toy.run(store=tmp_path / "here")
    there = toy.run(cluster=nodes.settings, env=nodes.environment)
    assert digests(there) == digests(here)
    assert there["double"]["built"] == 12
    again = toy.run(cluster=nodes.settings, env=nodes.environment)
    assert all(entry["cached"] for entry in again.values())


def test_the_fault_of_a_shard_comes_home_with_its_place_and_its_log(toy: Toy, nodes: Nodes):
    toy.write(bad="crash", **NUMBERS)
    told = toy.run(cluster=nodes.settings, env=nodes.environment, fails=True)
    assert "double: shard" in told["failed"]
    assert "ZeroDivisionError: a number that cannot be" in told["failed"]
    assert "in double" in told["log"]
    toy.write(bad=7)
    toy.run(cluster=nodes.settings, env=nodes.environment)


def test_a_driver_that_is_killed_leaves_nothing_and_the_next_goes_on(toy: Toy, nodes: Nodes, tmp_path: Path):
    toy.write(**NUMBERS)
    here = toy.run(store=tmp_path / "here")
    slowly(toy, 0.5)
    driver = start(toy, nodes)
    shards = toy.store / "shards" / "double"
    wait_until(lambda: shards.exists() and len(list(shards.iterdir())) >= 2, "two shards", driver)
    driver.kill()
    driver.wait()
    ready = len(list(shards.iterdir()))
    there = toy.run(cluster=nodes.settings, env=nodes.environment)
    assert digests(there) == digests(here)
    assert there["double"]["reused"] >= ready
    assert jobs_in_queue(nodes) == [] if nodes.settings["kind"] == "slurm" else True


def test_a_driver_that_is_asked_to_end_takes_its_jobs_with_it(toy: Toy, nodes: Nodes):
    toy.write(**NUMBERS)
    slowly(toy, 1.0)
    driver = start(toy, nodes)
    shards = toy.store / "shards" / "double"
    wait_until(lambda: shards.exists() and list(shards.iterdir()), "a shard", driver)
    driver.send_signal(signal.SIGINT)
    driver.wait()
    if nodes.settings["kind"] == "slurm":
        wait_until(lambda: not jobs_in_queue(nodes), "an empty queue")
    count = len(list(shards.iterdir()))
    assert count < 12
    assert not list((toy.store / "locks").glob("*.lease"))


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
    assert digests(there) == digests(here)
