"""A whole tiny recipe on real clusters: every stage of the data has the digest that it has here."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import Nodes
from tests.end_to_end.conftest import Line
from tests.waiting import wait_until

pytestmark = pytest.mark.end_to_end


def on(line: Line, nodes: Nodes, folder: Path) -> tuple[Line, dict[str, str]]:
    """The line with an empty store of its own, and a machine file of the cluster."""
    made = Line(folder / "line", line.server)
    made.root.mkdir()
    shutil.copytree(line.corpus, made.corpus)
    made.write_recipe(machine={"threads": 1, "device": "cpu", "cluster": nodes.settings})
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


def digests(line: Line) -> dict[str, Any]:
    """Digest of each stage of the newest run."""
    record = yaml.safe_load((line.store / "runs" / "latest" / "run.json").read_text())
    return {name: entry["digest"] for name, entry in record["stages"].items()}


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
    here, there = digests(line), digests(made)
    assert there == here


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
