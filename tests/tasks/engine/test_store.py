"""What the store does so that a result is whole after a loss of power, private, and not collected while it is built."""

import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.runs.inspect import find_garbage
from model.files import write_record
from tasks.engine.call import call
from tasks.engine.code import code_digests
from tasks.engine.machine import Machine
from tasks.engine.manifest import Manifest
from tasks.engine.spec import Spec
from tasks.engine.stage import Metrics, stage
from tasks.engine.store import Store
from tests.conftest import Toy


def manifest(key: str = "0" * 32) -> Manifest:
    return Manifest(stage="toy", key=key, digest="", ingredients={})


def test_a_result_is_on_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Files, folders and manifest, then the rename, then the folder that holds the name."""
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        events.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_rename(source: Any, target: Any) -> None:
        events.append(("rename", str(target)))
        rename(source, target)

    store = Store(tmp_path)
    building = store.start_building("toy", "0" * 32)
    (building / "out" / "inner").mkdir()
    for name in ("a", "inner/b"):
        (building / "out" / name).write_text(name)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    published = store.publish("artifacts", manifest(), building)
    at = events.index(("rename", str(published.path)))
    before = {path for kind, path in events[:at] if kind == "fsync"}
    names = {path.removeprefix(str(building)) for path in before}
    assert {"/out/a", "/out/inner/b", "/out/inner", "/out", ""} <= names
    assert any("manifest.json" in name for name in names)
    assert ("fsync", str(published.path.parent)) in events[at:]


def test_a_record_is_replaced_and_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "run.json"
    write_record(path, {"status": "running"})
    with path.open() as reader:
        synced: list[str] = []
        fsync = os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd)
        )
        write_record(path, {"status": "completed"})
        assert "running" in reader.read()
    assert "completed" in path.read_text()
    assert len(synced) == 2
    assert synced[1] == str(tmp_path)


def test_a_folder_for_checkpoints_is_its_owners_alone(tmp_path: Path):
    @stage()
    def keeps(out: Path, work: Path) -> Metrics:
        return {"mode": stat.S_IMODE(work.stat().st_mode)}

    spec = Spec(
        store=tmp_path,
        stage="",
        config=None,
        key="0" * 32,
        ingredients={"code": code_digests(__name__)},
        inputs={},
        shard_keys=None,
        machine=Machine(),
    )
    umask = os.umask(0)
    try:
        assert call(keeps, spec, Store(tmp_path), "0" * 32, {}, tmp_path)["mode"] == 0o700
    finally:
        os.umask(umask)


def test_who_lost_the_lock_publishes_nothing_of_who_has_it(tmp_path: Path):
    """As where a computer slept for longer than its lease lasts."""
    store, key = Store(tmp_path), "0" * 32
    slept = store.start_building("toy", key)
    (slept / "out" / "first").write_text("of the one that slept")
    awake = store.start_building("toy", key)
    (awake / "out" / "first").write_text("half")
    with pytest.raises(OSError, match="No such file"):
        (slept / "out" / "second").write_text("goes on")
    with pytest.raises(OSError, match="No such file"):
        store.publish("artifacts", manifest(), slept)
    assert store.find("artifacts", "toy", key) is None
    (awake / "out" / "second").write_text("whole")
    published = store.publish("artifacts", manifest(), awake)
    assert sorted(published.manifest.files) == ["first", "second"]
    assert not (tmp_path / "building" / f"toy-{key}").exists()


def test_a_shared_lock_is_one_of_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """NFS refuses it of a file that is open for writing alone."""
    modes = []
    real = fcntl.flock

    def look(file: Any, operation: int) -> None:
        modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE)
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", look)
    with Store(tmp_path).roots() as held:
        assert held
    assert modes == [os.O_RDWR]


def test_what_is_being_built_is_no_garbage(tmp_path: Path):
    store = Store(tmp_path)
    for kind in ("building", "work"):
        (tmp_path / kind / "toy-0123").mkdir(parents=True)
        (tmp_path / kind / "toy-4567").mkdir(parents=True)
    with store.lock("toy", "0123"):
        garbage = {item.path.relative_to(tmp_path).as_posix() for item in find_garbage(store, 1)}
    assert garbage == {"building/toy-4567", "work/toy-4567"}


def test_what_an_older_run_that_still_works_needs_is_no_garbage(toy: Toy):
    from tests.waiting import wait_until

    toy.run()
    slow = toy.environment(TOY_DELAY="4")
    process = subprocess.Popen(toy.command(word="was"), env=slow, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: list((toy.store / "building").glob("label-*")), "a build", process)
    notes = toy.run(factor=3)
    removed = toy.run(gc=1)
    assert not [
        path for path in removed if path.startswith("artifacts/total") and notes["total"]["key"] not in path
    ]
    out, _ = process.communicate()
    assert process.returncode == 0, out


def test_a_folder_of_the_caller_is_on_no_childs_path(toy: Toy, tmp_path: Path):
    for name in ("annotated_types", "hashlib", "pydantic"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    environment = {name: value for name, value in toy.environment().items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(toy.command(), env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_hanging_training_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from model.errors import StageFailed
    from model.machine import TrainingMachine
    from tasks.engine import launcher
    from tasks.engine.on_ranks import run_on_ranks

    started: list[subprocess.Popen[bytes]] = []

    def hang(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(real([sys.executable, "-c", "import time; time.sleep(600)"], **options))
        return started[-1]

    def hang_in_a_step(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        for rank in (0, 1):
            # The clock of the other computer is ahead, and its file the older one.
            seen = {"host": f"n{rank}", "phase": "step", "since_ns": rank}
            path = Path(arguments[-1]).parent / f"rank-{rank}.json"
            path.write_text(json.dumps(seen))
            os.utime(path, (1000 - rank, 1000 - rank))
        return hang(arguments, **options)

    real = subprocess.Popen
    monkeypatch.setattr(launcher.subprocess, "Popen", hang)
    machine = Machine(device="cpu", hang_seconds=0.5)
    resolved = TrainingMachine(device="cpu", ranks=1)
    with pytest.raises(StageFailed, match="no rank has begun for 2 seconds") as failure:
        run_on_ranks(print, {}, resolved, machine, tmp_path)
    assert failure.value.retryable
    assert started[0].poll() is not None

    monkeypatch.setattr(launcher.subprocess, "Popen", hang_in_a_step)
    with pytest.raises(StageFailed, match=r"longest without news is rank 1 on n1 \(step\)"):
        run_on_ranks(print, {}, resolved, machine, tmp_path)


def test_two_that_remove_the_same_do_not_trip_over_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from flows.runs import inspect

    store, folder = Store(tmp_path), tmp_path / "building" / "trash-0123"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    real = inspect.folder_bytes

    def vanishing(path: Path) -> int:
        store.delete(path)
        return real(path) or path.lstat().st_size

    monkeypatch.setattr(inspect, "folder_bytes", vanishing)
    (item,) = find_garbage(store, 1)
    assert (item.path, item.bytes) == (folder, 0)
    store.discard(folder)
    store.delete(folder)
    assert inspect.collect([item], store, 1) == []


def test_a_child_that_is_done_before_its_parent_looks_has_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Publishing moves the folder in which the log is."""
    import asyncio

    from tasks.engine.process import run_child

    folder, moved = tmp_path / "building", tmp_path / "published"
    folder.mkdir()
    start = asyncio.create_subprocess_exec

    async def start_and_be_slow(*arguments: Any, **options: Any) -> Any:
        child = await start(*arguments, **options)
        while not moved.exists():
            await asyncio.sleep(0.05)
        return child

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_and_be_slow)
    program = f"import os; print('done'); os.rename({str(folder)!r}, {str(moved)!r})"
    ended = asyncio.run(run_child([sys.executable, "-u", "-c", program], folder / "log.txt", lambda: None))
    assert ended == (0, "")
    assert (moved / "log.txt").read_text() == "done\n"
