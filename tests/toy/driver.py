"""Builds or plans the toy graph in a process of its own: driver.py STORE NUMBERS {"plan": false, "workers": 1, ...}."""

import asyncio
import json
import sys
from pathlib import Path

from flows.runs.execute import Place, build_shown, run_nodes
from flows.runs.plan import plan
from model.errors import InputError, StageFailed
from tasks.engine.machine import Machine
from tasks.engine.sources import SourceDigests
from tasks.engine.store import Store
from toy.source import NumbersConfig, numbers
from toy.stages import DoubleConfig, LabelConfig, TotalConfig, double, label, total


def main() -> None:
    """Print one line of JSON."""
    store, folder, options = Store(Path(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3])
    n = numbers(NumbersConfig(path=folder))
    d = double(DoubleConfig(factor=options.get("factor", 2)), numbers=n)
    t = total(TotalConfig(modulus=options.get("modulus", 1000)), doubled=d)
    la = label(LabelConfig(word=options.get("word", "is")), doubled=d, total=t)
    nodes = [n, d, t, la]
    place = Place(
        store, SourceDigests(store.root / "sources.sqlite"), Machine(workers=options.get("workers", 1))
    )
    if options.get("plan"):
        print(json.dumps({row.stage: row.as_json() for row in plan(nodes, store, place.sources, {})}))
        return
    notes = {}

    def note(node, outcome):
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
        asyncio.run(
            run_nodes(
                nodes, lambda node, inputs: build_shown(node, inputs, place, lambda progress: None), note
            )
        )
    except InputError as error:
        print(json.dumps({"input_error": str(error)}))
        sys.exit(2)
    except StageFailed as error:
        print(json.dumps({"failed": str(error), "retryable": error.retryable, "log": error.log}))
        sys.exit(1)
    print(json.dumps(notes))


if __name__ == "__main__":
    main()
