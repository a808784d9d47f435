"""Leases between computers, and what a worker of a cluster refuses."""

import errno
import os
import shutil
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import Mock

import pytest

from model.errors import StageFailed
from tasks.engine import job, leases, worker
from tasks.engine.build import _spec, look_up
from tasks.engine.clusters import RayCluster
from tasks.engine.machine import Machine
from tasks.engine.sources import SourceDigests
from tasks.engine.spec import Spec
from tasks.engine.store import Store
from tasks.text.ingest import ingest
from tasks.text.sources import IngestConfig, Source


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch):
    """Makes this process another computer, for as long as the test does not ask for the old one."""
    return lambda name: monkeypatch.setattr(leases, "_here", lambda: name)


def test_another_computer_does_not_get_what_is_held(tmp_path: Path, elsewhere):
    store = Store(tmp_path)
    elsewhere("one")
    with store.lock("stage", "key", leased=True) as held:
        assert held
        elsewhere("two")
        # The lock of the one computer says nothing on the other.
        (tmp_path / "locks" / "stage-key").unlink()
        with store.lock("stage", "key", wait=False, leased=True) as again:
            assert not again
        with store.lock("stage", "key", wait=False) as collected:
            assert not collected
        elsewhere("one")
    with store.lock("stage", "key", wait=False, leased=True) as now:
        assert now


def test_a_lease_that_nobody_touches_is_nobodys(tmp_path: Path, elsewhere):
    path = tmp_path / "locks" / "stage-key.lease"
    path.parent.mkdir()
    path.write_text("elsewhere")
    store = Store(tmp_path)
    with store.lock("stage", "key", wait=False, leased=True) as held:
        assert not held
    old = path.stat().st_mtime - 2 * leases.STALE_SECONDS
    os.utime(path, (old, old))
    with store.lock("stage", "key", wait=False, leased=True) as held:
        assert held
    assert not path.exists()


def test_a_store_that_does_not_answer_ends_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "lease"
    path.write_text("elsewhere")
    assert leases.is_held(path)

    def fails(*arguments: object) -> int:
        raise OSError(errno.ESTALE, "of a file system on the network")

    monkeypatch.setattr(leases.os, "open", fails)
    assert leases.is_held(path)
    monkeypatch.setattr(leases.os, "open", Mock(side_effect=PermissionError(errno.EACCES, "not yours")))
    with pytest.raises(PermissionError):
        leases.is_held(path)
    monkeypatch.undo()
    # A full one tells nothing of its clock; who is long gone is gone.
    monkeypatch.setattr(Path, "touch", Mock(side_effect=OSError(errno.EDQUOT, "quota exceeded")))
    assert leases.is_held(path)
    os.utime(path, (0, 0))
    assert not leases.is_held(path)
    monkeypatch.undo()
    path.unlink()
    assert not leases.is_held(path)


def test_a_store_that_stands_still_while_it_is_looked_at_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A mount that waits for its server says nothing for as long as that takes; whoever holds the lease touches it then."""
    lease = tmp_path / "lease"
    lease.touch()
    os.utime(lease, (0, 0))
    real = leases.file_system_time

    def stand_still(folder: Path) -> float:
        now = real(folder)
        os.utime(lease)
        return now

    monkeypatch.setattr(leases, "file_system_time", stand_still)
    assert leases.is_held(lease)


def test_a_worker_ends_with_its_driver_whatever_the_store_said_before(monkeypatch: pytest.MonkeyPatch):
    """The thread that watches the driver is all that ends a job whose driver was killed."""
    told: list[OSError | bool] = [True, PermissionError(errno.EACCES, "for a moment"), OSError("odd"), False]
    monkeypatch.setattr(worker, "is_held", Mock(side_effect=told))
    monkeypatch.setattr(worker, "TOUCH_SECONDS", 0.0)
    monkeypatch.setattr(worker.os, "_exit", Mock(side_effect=SystemExit))
    with pytest.raises(SystemExit):
        worker._end_with_driver(Path("lease"))
    assert worker.is_held.call_count == 4


def test_the_age_of_a_lease_is_told_by_the_clock_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "lease"
    path.write_text("elsewhere")
    monkeypatch.setattr(time, "time", lambda: 9e9)
    assert leases.is_held(path)
    monkeypatch.setattr(leases, "file_system_time", lambda folder: path.stat().st_mtime + 31)
    assert not leases.is_held(path)


def test_of_many_that_find_a_stale_lease_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Each as a computer of its own, since on one the lock of the kernel lets one come so far.
    monkeypatch.setattr(leases, "_here", lambda: threading.current_thread().name)
    begin, ended, got = threading.Barrier(8), threading.Barrier(8, timeout=20), []

    def take(path: Path) -> None:
        begin.wait()
        with leases.hold(path) as held:
            got.append((path, held))
            ended.wait()

    # Again and again, since of what can go wrong here most needs two of them between the same two lines.
    paths = [tmp_path / f"{number}.lease" for number in range(150)]
    for path in paths:
        path.write_text("elsewhere")
        os.utime(path, (0, 0))
        threads = [threading.Thread(target=take, args=(path,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [path for path, held in got if held] == paths


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    node = ingest(IngestConfig(sources=(Source(path=str(tmp_path / "in")),)))
    store = Store(tmp_path / "store")
    resolved, key, _ = look_up(node, {}, store, SourceDigests())
    return _spec(node, {}, resolved, key, store, Machine())


def test_a_worker_that_differs_says_in_what(spec: Spec):
    assert worker.differences(spec) == []
    ingredients = {
        **spec.ingredients,
        "python": "3.9",
        "libraries": {**spec.ingredients["libraries"], "pyarrow": "1.0"},
        "code": {**spec.ingredients["code"], "tasks.text.ingest": "0"},
    }
    other = spec.model_copy(update={"ingredients": ingredients, "format_version": 1})
    told = "; ".join(worker.differences(other))
    for part in ("format", "instead of 3.9", "pyarrow", "instead of 1.0", "other code in tasks.text.ingest"):
        assert part in told


def test_a_worker_whose_driver_is_gone_builds_nothing(spec: Spec, tmp_path: Path):
    folder = tmp_path / "store" / "building" / f"ingest-{spec.key}"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    told = worker.build_one(folder / "spec.json", 0)
    assert "whoever asked for it has ended" in told["error"]
    assert not (tmp_path / "store" / "shards").exists()
    with Store(spec.store).lock("ingest", spec.key, leased=True):
        assert worker.build_one(folder / "spec.json", 0)["built"]
        assert not worker.build_one(folder / "spec.json", 0)["built"]


def test_two_that_build_a_shard_at_once_leave_one(spec: Spec, tmp_path: Path):
    assert job.build_shard(spec, 0, tmp_path / "store" / "one")
    (shard,) = (tmp_path / "store" / "shards" / "ingest").iterdir()
    first = shard.stat().st_ino
    forced = spec.model_copy(update={"force": True})
    assert job.build_shard(forced, 0, tmp_path / "store" / "two")
    assert shard.stat().st_ino == first
    assert not (tmp_path / "store" / "two").exists()


def test_a_shard_whose_folder_was_removed_in_the_middle_is_not_published(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = job.call

    def remove_and_go_on(*arguments) -> dict:
        figures = real(*arguments)
        out = arguments[-1]
        shutil.rmtree(out.parent)
        (out / "shards" / "00001").mkdir(parents=True)
        (out / "shards" / "00001" / "documents.parquet").write_text("the rest")
        return figures

    monkeypatch.setattr(job, "call", remove_and_go_on)
    with pytest.raises(StageFailed, match="was removed meanwhile"):
        job.build_shard(spec, 0, tmp_path / "store" / "attempts" / "one")
    assert not (tmp_path / "store" / "shards").exists()


def test_a_worker_that_is_asked_to_end_reports_no_fault_of_the_shard(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "store" / "building" / f"ingest-{spec.key}"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(spec.model_dump_json())

    def asked_to_end(*arguments) -> dict:
        raise SystemExit(143)

    monkeypatch.setattr(job, "call", asked_to_end)
    with Store(spec.store).lock("ingest", spec.key, leased=True), pytest.raises(SystemExit):
        worker.build_one(folder / "spec.json", 0)


@pytest.mark.parametrize(("text", "size"), [("2GB", 2 * 10**9), ("500MB", 5 * 10**8), ("1.5 g", 1.5 * 10**9)])
def test_sizes_of_memory(text: str, size: float):
    assert RayCluster(kind="ray", memory_per_job=text).memory_bytes == size


def test_a_computer_that_slept_takes_no_lease_from_the_next(tmp_path: Path, elsewhere):
    path = tmp_path / "a.lease"
    elsewhere("one")
    with ExitStack() as two:
        with leases.hold(path) as held:
            assert held
            old = path.stat().st_mtime - 2 * leases.STALE_SECONDS
            os.utime(path, (old, old))
            elsewhere("two")
            assert two.enter_context(leases.hold(path))
        assert leases.is_held(path)
        assert path.read_text().startswith("two")
    assert not path.exists()


def test_a_full_store_tells_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lease = tmp_path / "lease"
    lease.touch()

    def is_full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", is_full)
    # The clock of this computer is ahead by more than a lease lasts.
    monkeypatch.setattr(time, "time", lambda: lease.stat().st_mtime + 10 * leases.STALE_SECONDS)
    assert leases.file_system_time(tmp_path) - lease.stat().st_mtime < 5 * leases.STALE_SECONDS
