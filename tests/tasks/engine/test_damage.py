"""Flipped bits, full disks and collections at the wrong moment: no wrong byte is built on, nothing needed is lost."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toy
from tests.waiting import wait_until


def digests(notes: dict[str, Any]) -> dict[str, str]:
    return {stage: note["digest"] for stage, note in notes.items()}


def flip(path: Path, position: int = -1) -> None:
    """Change one bit of a file, and neither its size nor its time."""
    status = os.stat(path)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("victim", ["shard of a map stage", "shard in a folder", "whole"])
def test_no_stage_builds_on_a_flipped_bit(toy: Toy, victim: str):
    notes = toy.run()
    label, total = Path(notes["label"]["path"]), Path(notes["total"]["path"])
    damaged, reader, changed = {
        "shard of a map stage": (Path(notes["double"]["shards"][1]) / "number", "total", {"modulus": 999}),
        "shard in a folder": (Path(notes["numbers"]["shards"][1]) / "number", "double", {"factor": 3}),
        "whole": (total / "out" / "total", "label", {"word": "was"}),
    }[victim]
    expected = digests(toy.run(store=toy.root / "undisturbed", **changed))
    flip(damaged)
    answer = toy.run(fails=True, **changed)
    assert answer["failed"].startswith(f"{reader}: ")
    assert "is damaged" in answer["failed"]
    assert str(damaged) in answer["failed"]
    assert not damaged.exists()
    assert list((toy.store / "damaged").iterdir())
    assert digests(toy.run(**changed)) == expected
    assert label.exists()


def test_verify_names_and_sets_aside_every_kind_of_damage(toy: Toy):
    notes = toy.run()
    assert toy.run(verify=True) == []
    whole, shard = Path(notes["total"]["path"]), Path(notes["double"]["shards"][0])
    run = next((toy.store / "runs").glob("*-toy-*")) / "run.json"
    flip(shard / "number")
    flip(shard / "figures" / "time")
    flip(whole / "manifest.json", (whole / "manifest.json").read_text().index('"total": 12') + 9)
    (Path(notes["label"]["path"]).parent / "stranger").mkdir()
    flip(run, 20)
    extra = Path(notes["numbers"]["path"]) / "out" / "extra"
    extra.write_text("")
    faults = "\n".join(toy.run(verify=True))
    for named in (shard / "number", shard / "figures" / "time", whole, "stranger", run.parent, extra):
        assert str(named) in faults, named
    assert str(notes["double"]["path"]) in faults
    run.unlink()
    assert toy.run(verify=True) == [] or "run.json cannot be read" in toy.run(verify=True)[0]
    assert digests(toy.run()) == digests(notes)


def test_a_full_disk_is_named_although_no_file_can_say_so(toy: Toy):
    """A limit on the size of files stands for the disk: nothing that a child writes at its end would fit."""
    toy.edit(
        "stages",
        "    text = (numbers",
        "    import errno\n\n    raise OSError(errno.ENOSPC, 'No space left on device', str(out))\n    text = (numbers",
    )
    answer = toy.run(fails=True)
    assert "double: the disk is full" in answer["failed"]
    assert not list((toy.store / "building").glob("*.json"))


def stopped(toy: Toy, shards: int, **options: Any) -> None:
    """A run that is killed once it has built some shards."""
    environment = toy.environment(TOY_DELAY="0.5")
    process = subprocess.Popen(toy.command(**options), env=environment, start_new_session=True)
    folder = toy.store / "shards" / "double"
    wait_until(lambda: folder.is_dir() and len(list(folder.iterdir())) >= shards, "shards", process)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_collecting_keeps_what_the_newest_run_was_killed_with(toy: Toy):
    stopped(toy, 1)
    built = set((toy.store / "shards" / "double").iterdir())
    (toy.store / "work" / "unknown-0123").mkdir(parents=True)
    removed = toy.run(gc=1)
    assert "work/unknown-0123" in removed
    assert built <= set((toy.store / "shards" / "double").iterdir())
    assert toy.run()["double"]["reused"] >= 1


def test_failed_runs_push_no_completed_run_out(toy: Toy):
    notes = toy.run()
    toy.write(b="crash")
    for _ in range(3):
        toy.run(fails=True)
    toy.run(gc=1)
    toy.write(b=2)
    assert all(note["cached"] for note in toy.run().values())
    toy.run(factor=3)
    assert f"artifacts/total/{notes['total']['key']}" in toy.run(gc=1)


def test_collecting_beside_a_run_takes_nothing_that_it_needs(toy: Toy):
    """It hits what an old run made, which nothing but this run needs, and builds for a while."""
    first = toy.run()
    toy.run(factor=3)
    environment = toy.environment(TOY_DELAY="1")
    process = subprocess.Popen(toy.command(word="was"), env=environment, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: list((toy.store / "building").glob("label-*")), "a build", process)
    removed = toy.run(gc=1)
    assert not [
        path for path in removed if path.startswith(("artifacts/double", "shards/double", "artifacts/total"))
    ]
    out, _ = process.communicate()
    assert process.returncode == 0
    notes = json.loads(out.splitlines()[-1])
    assert notes["double"]["cached"]
    assert notes["total"]["digest"] == first["total"]["digest"]


def test_what_is_removed_is_what_was_shown_and_is_garbage_still(toy: Toy):
    from flows.runs.inspect import collect, find_garbage
    from tasks.engine.store import Store

    first, store = toy.run(), Store(toy.store)
    toy.run(factor=3)
    shown = find_garbage(store, 1)
    assert Path(first["total"]["path"]) in {item.path for item in shown}
    toy.run()
    toy.run(factor=4)
    removed = {item.path for item in collect(shown, store, 2)}
    assert Path(first["total"]["path"]) not in removed
    assert all(note["cached"] for note in toy.run().values())
