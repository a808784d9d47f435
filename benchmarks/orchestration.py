"""What running stages as Prefect tasks costs, beside the stages themselves: a cold run, with and without a server.

    python benchmarks/orchestration.py RECIPE [--set SECTION.FIELD=VALUE ...]

Runs the recipe twice, each time into an empty store: on a Prefect server that is there already, and with
the one that `scratchlm run` brings itself. A stage's own time is that of its process, from its start
to its result; stages that wait for each other add up, others do not (the longest path through the graph).
What the command takes beyond that is orchestration.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flows.pretrain import graph
from flows.recipe.read import load_recipe
from flows.serving.server import prefect_server
from tasks.engine.stage import Node, topological


def longest_path(nodes: list[Node], seconds: dict[str, float]) -> float:
    """Seconds of the chain of stages that takes longest."""
    until: dict[Node, float] = {}
    for node in topological(nodes):
        until[node] = seconds[node.name] + max(
            (until[upstream] for upstream in node.inputs.values()), default=0.0
        )
    return max(until.values())


def run(command: list[str], store: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of the whole command, and the record of its run."""
    started = time.perf_counter()
    subprocess.run(
        [*command, "--store", str(store)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - started
    return seconds, json.loads((store / "runs" / "latest" / "run.json").read_text())


def main() -> None:
    """Time both kinds of run and print a table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("recipe", type=Path, help="the recipe to run")
    options.add_argument(
        "--set", action="append", default=[], dest="assignments", help="override a field of the recipe"
    )
    given = options.parse_args()
    nodes = graph(load_recipe(given.recipe, given.assignments))
    program = str(Path(sys.executable).parent / "scratchlm")
    command = [
        program,
        "run",
        str(given.recipe),
        *(word for each in given.assignments for word in ("--set", each)),
    ]
    os.environ.pop("PREFECT_API_URL", None)
    print("| server | command s | stages s | orchestration s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:

        def measure(name: str) -> None:
            whole, record = run(command, Path(folder) / name)
            own = longest_path(nodes, {stage: entry["seconds"] for stage, entry in record["stages"].items()})
            print(f"| {name} | {whole:.1f} | {own:.1f} | {whole - own:.1f} |", flush=True)

        with prefect_server(Path(folder)):
            measure("running")
        measure("its own")


if __name__ == "__main__":
    main()
