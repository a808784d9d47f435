"""Builds, plans, verifies or collects the toy graph in a process of its own: driver.py STORE NUMBERS OPTIONS.

OPTIONS is JSON such as {"workers": 2}, {"plan": true}, {"verify": true}, {"gc": 1}. Prints one line of JSON.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from flows.runs.execute import Place, build_shown, claim, run_nodes
from flows.runs.record import new_run
from model.errors import InputError, StageFailed
from model.imports import leave_at_once
from tasks.engine.build import Outcome
from tasks.engine.machine import Machine
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Node
from tasks.engine.store import Store, Stored
from toy.source import NumbersConfig, numbers
from toy.stages import DoubleConfig, LabelConfig, TotalConfig, double, label, total


def graph(folder: str, options: dict[str, Any]) -> list[Node]:
    """The toy graph on the numbers in a folder."""
    n = numbers(NumbersConfig(path=folder))
    d = double(DoubleConfig(factor=options.get("factor", 2)), numbers=n)
    t = total(TotalConfig(modulus=options.get("modulus", 1000)), doubled=d)
    return [n, d, t, label(LabelConfig(word=options.get("word", "is")), doubled=d, total=t)]


def build_all(nodes: list[Node], place: Place) -> int:
    """Build them as one run; prints what came of each, or why not, and returns the exit status."""
    notes = {}
    run = new_run(
        place.store, "toy", {"flow": "toy", "recipe": {"name": "toy"}, "machine": {}, "champion": None}
    )

    async def build_node(node: Node, inputs: dict[str, Stored]) -> Outcome:
        claim(node, inputs, place, run)
        return await build_shown(node, inputs, place, lambda progress: None)

    def note(node: Node, outcome: Outcome) -> None:
        run.note(node, outcome)
        stored = outcome.stored
        notes[node.name] = {
            "key": stored.manifest.key,
            "digest": stored.manifest.digest,
            "cached": outcome.cached,
            "built": outcome.shards_built,
            "reused": outcome.shards_reused,
            "shards": [str(path) for path in stored.shard_paths],
            "path": str(stored.path),
        }

    try:
        asyncio.run(run_nodes(nodes, build_node, note))
    except InputError as error:
        print(json.dumps({"input_error": str(error)}))
        run.end("failed", str(error))
        return 2
    except StageFailed as error:
        print(json.dumps({"failed": str(error), "retryable": error.retryable, "log": error.log}))
        run.end("failed", str(error))
        return 1
    run.end("completed")
    print(json.dumps(notes))
    return 0


def main() -> int:
    """Do what the options ask for. SIGTERM ends it as Ctrl-C does, as it does the command."""
    leave_at_once()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    store, folder, options = Store(Path(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3])
    machine = Machine(workers=options.get("workers", 1), cluster=options.get("cluster", {"kind": "local"}))
    place = Place(store, SourceDigests(store.root / "sources.sqlite"), machine)
    # Imported where it is asked for: most only build, and there are hundreds of them.
    if options.get("verify"):
        from flows.runs.inspect import verify_store

        print(json.dumps(list(verify_store(store))))
    elif "gc" in options:
        from flows.runs.inspect import collect, find_garbage

        removed = collect(find_garbage(store, options["gc"]), store, options["gc"])
        print(json.dumps([str(item.path.relative_to(store.root)) for item in removed]))
    elif options.get("plan"):
        from flows.runs.plan import plan

        rows = plan(graph(folder, options), store, place.sources, {})
        print(json.dumps({row.stage: row.as_json() for row in rows}))
    else:
        return build_all(graph(folder, options), place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
