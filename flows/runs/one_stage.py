"""One stage alone, in this process, on cached inputs: for a debugger."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from flows.runs.execute import Place
from model.errors import InputError
from tasks.engine.build import Outcome, build_here, look_up
from tasks.engine.stage import Node, topological
from tasks.engine.store import Stored
from tasks.tables import read_table

_ROWS, _MOST_CHARACTERS = 3, 160


@dataclass(frozen=True)
class Built:
    """What was built: the whole, or the shards that were asked for, by position."""

    whole: Outcome | None
    shards: dict[int, Stored]


def first_rows(out: Path) -> list[str]:
    """The first rows of the tables of a shard, a line each, cut where they are long."""
    lines = []
    for path in sorted(out.rglob("*.parquet")):
        table = read_table(path)
        lines.append(f"{path.relative_to(out)}: {table.num_rows:,} rows")
        for row in table.slice(0, _ROWS).to_pylist():
            values = {name: value for name, value in row.items() if value is not None}
            text = json.dumps(values, ensure_ascii=False, default=str)
            lines.append(f"  {text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + '…'}")
    return lines


def run_one_stage(
    name: str,
    nodes: list[Node],
    place: Place,
    *,
    first_shards: int | None = None,
    shard: int | None = None,
    force: bool = False,
    out: Path | None = None,
) -> Built:
    """Build one stage in this process on finished inputs.

    Args:
        name: the stage.
        nodes: the graph it is in.
        first_shards: build only this many missing shards and publish no whole.
        shard: build only the shard at this position and publish no whole.
        force: build it although it is there.
        out: new folder for a copy of the files, those of shard K below shards/K.

    Raises:
        InputError: if the stage does not exist, an input is not built yet, or `out` is not empty.
    """
    if out and (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"--out {str(out)!r} is there and not an empty folder: give another one")
    stages = {node.name: node for node in topological(nodes)}
    if name not in stages:
        raise InputError(f"there is no stage {name!r}: stages are {', '.join(stages)}")
    node = stages[name]
    # No run names what it reads and makes, so nothing is collected meanwhile.
    with place.store.roots():
        inputs = _finished_inputs(node, place)
        outcome = build_here(
            node,
            inputs,
            place.store,
            place.machine,
            place.sources,
            first_shards=first_shards,
            shard=shard,
            force=force,
        )
        keys = look_up(node, inputs, place.store, place.sources)[0].shard_keys
    shards = {
        position: built
        for position, key in enumerate(keys or ())
        if key
        and shard in (None, position)
        and (built := place.store.find_whole("shards", node.stage.name, key))
    }
    if first_shards is not None:
        shards = dict(list(shards.items())[:first_shards])
    if out:
        _copy(outcome, shards, out)
    return Built(outcome, shards)


def _finished_inputs(node: Node, place: Place) -> dict[str, Stored]:
    """The results that a node reads, all of which must be in the store."""
    done: dict[Node, Stored] = {}
    *upstream, _ = topological([node])
    for other in upstream:
        inputs = {name: done[read] for name, read in other.inputs.items()}
        stored = look_up(other, inputs, place.store, place.sources)[2]
        if stored is None:
            raise InputError(
                f"{node.name} needs the result of {other.name}, which is not built yet: run it first with "
                f"`scratchlm task {other.name} RECIPE`, or all with `scratchlm run RECIPE`"
            )
        done[other] = stored
    return {name: done[read] for name, read in node.inputs.items()}


def _copy(outcome: Outcome | None, shards: dict[int, Stored], out: Path) -> None:
    """Copy the files of a result, or of those of its shards that are there."""
    folders = {out: outcome.stored.out} if outcome and outcome.stored.manifest.shards is None else {}
    folders |= {out / "shards" / f"{position:05d}": shard.out for position, shard in shards.items()}
    for target, source in folders.items():
        shutil.copytree(source, target, dirs_exist_ok=True)
