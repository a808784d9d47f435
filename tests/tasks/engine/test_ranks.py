"""A job on ranks: where it runs, what is shared, and when a rank counts as hung."""

import errno
import gc
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InputError
from tasks.engine import ranks
from tasks.engine.machine import Machine
from tasks.engine.on_ranks import call_on_ranks, has_ranks_elsewhere
from tasks.engine.ranks import Job, Rank
from tasks.engine.stage import load_stage
from tasks.evaluation.evaluate_model import _together
from tasks.reading import fitting, in_turn, share_of


def told(arguments: dict[str, Any], rank: Rank) -> dict[str, Any]:
    return {"process": os.getpid(), "rank": rank.number, "of": rank.count, "given": arguments["x"]}


def failing(arguments: dict[str, Any], rank: Rank) -> None:
    raise InputError(f"rank {rank.number} cannot do it")


def machine(**fields: Any) -> Machine:
    return Machine.model_validate({"device": "cpu", "threads": 1, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"in_process": True, "nodes": 2, "ranks": 2},
        {"in_process": True, "ranks": 4},
        {"nodes": 2, "ranks": 2},
    ],
)
def test_one_rank_is_this_process(fields: dict[str, Any], tmp_path: Path):
    done = call_on_ranks(told, {"x": 1}, machine(**fields), tmp_path)
    assert done == {"process": os.getpid(), "rank": 0, "of": 1, "given": 1}


def test_several_are_processes_of_their_own_and_the_first_speaks(tmp_path: Path):
    done = call_on_ranks(told, {"x": 1}, machine(ranks=2), tmp_path)
    assert done["process"] != os.getpid()
    assert (done["rank"], done["of"]) == (0, 2)
    with pytest.raises(InputError, match=r"rank \d on \S+ \(load\): rank \d cannot do it"):
        call_on_ranks(failing, {"x": 1}, machine(ranks=2), tmp_path)


def test_a_rank_that_fails_in_a_group_tells_why_and_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """To end a group of NCCL a rank waits for the others, which wait for it: its process ends without."""
    import torch.distributed as dist

    left = []

    def leave(status: int) -> None:
        path = tmp_path / "error-0.json"
        left.append((status, json.loads(path.read_text())[1:] if path.exists() else None))
        raise SystemExit(status)

    def is_full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(os, "_exit", leave)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    job = Job(call=f"{__name__}:failing", arguments={}, work=tmp_path)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    with pytest.raises(SystemExit):
        ranks._do(tmp_path / "job.json")
    assert left == [(1, ["input", "rank 0 cannot do it"])]
    (tmp_path / "error-0.json").unlink()
    monkeypatch.setattr(ranks, "write_whole", is_full)
    monkeypatch.setattr(Rank, "enter", lambda *_: None)
    with pytest.raises(SystemExit):
        ranks._do(tmp_path / "job.json")
    assert left[1:] == [(1, None)]


def leaves_things(arguments: dict[str, Any], rank: Rank) -> int:
    """Have a folder below /tmp, and wait in it until somebody ends this rank."""
    with tempfile.TemporaryDirectory(dir=arguments["folder"]):
        if rank.number == 0:
            while len(list(Path(arguments["folder"]).iterdir())) < rank.count:
                time.sleep(0.05)
            raise InputError("enough")
        time.sleep(1000)
    return 0


def hangs_at_its_end(arguments: dict[str, Any], rank: Rank) -> int:
    """Do it, and do not come to an end."""
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return 7


def test_ranks_that_are_ended_leave_nothing_below_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "own").mkdir()
    with pytest.raises(InputError, match="enough"):
        call_on_ranks(leaves_things, {"folder": str(tmp_path / "own")}, machine(ranks=2), tmp_path)
    assert list((tmp_path / "own").iterdir()) == []
    assert list((tmp_path / "tmp").glob("torchelastic_*")) == []


def test_a_rank_that_has_done_its_job_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.engine.on_ranks._LEAVING_SECONDS", 1.0)
    monkeypatch.setattr("tasks.engine.on_ranks._STOP_SECONDS", 1.0)
    assert call_on_ranks(hangs_at_its_end, {}, machine(ranks=2), tmp_path) == 7


def test_what_is_elsewhere():
    slurm = {"kind": "slurm", "partition": "main"}
    assert not has_ranks_elsewhere(machine(ranks=8))
    assert not has_ranks_elsewhere(machine(cluster=slurm))
    assert has_ranks_elsewhere(machine(cluster=slurm, nodes=1, ranks=1))
    assert has_ranks_elsewhere(machine(nodes=2, ranks=2))
    assert not has_ranks_elsewhere(machine(nodes=2, ranks=2, in_process=True))


def test_a_rank_that_is_not_the_first_is_seen_to_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("tasks.engine.ranks._NEWS_SECONDS", 0.0)
    rank, presence = Rank(tmp_path), tmp_path / "rank-1.json"
    rank.enter("step")
    before = json.loads(presence.read_text())
    rank.progress(1, 2, "documents")
    after = json.loads(presence.read_text())
    assert after["since_ns"] > before["since_ns"]
    assert after["phase"] == "step"
    assert not (tmp_path / "progress.json").exists()


def test_news_that_cannot_be_written_end_no_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    rank = Rank(tmp_path)

    def refuse(number: int) -> None:
        def write(path: Path, text: str) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(ranks, "write_whole", write)

    for number in (errno.EIO, errno.ENOSPC):
        refuse(number)
        rank.enter("step")
        rank.progress(1, 2, "steps")
    refuse(errno.EACCES)
    with pytest.raises(PermissionError):
        rank.enter("step")


def test_a_store_that_falls_silent_while_ranks_are_looked_at_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "rank-0.json").write_text(json.dumps({"host": "a", "phase": "step", "since_ns": 1}))
    (tmp_path / "error-0.json").write_text(json.dumps([1, "stage", "why"]))

    real = Path.stat

    def is_silent(path: Path, **options: Any) -> os.stat_result:
        if path.suffix == ".json":
            raise OSError(errno.EIO, "Input/output error")
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", is_silent)
    assert ranks.presences(tmp_path) == {}
    monkeypatch.setattr(ranks, "presences", lambda work: {})
    assert ranks.first_error(tmp_path) == ("stage", "why")


def test_a_job_finds_its_function():
    job = Job(call=f"{told.__module__}:{told.__name__}", arguments={}, work=Path())
    assert job.function is told
    assert Job.model_validate_json(job.model_dump_json()) == job


@given(st.lists(st.integers()), st.integers(1, 5))
def test_what_is_shared_comes_together_in_its_order(items: list[int], count: int):
    ranks = []
    for number in range(count):
        rank = Rank()
        rank.number, rank.count = number, count
        ranks.append(rank)
    shares = [share_of(items, rank) for rank in ranks]
    assert in_turn(shares) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    # What lm-eval brings together has names around the lists.
    named = [{"task": {("acc", "none"): share}} for share in shares]
    assert _together(named) == {"task": {("acc", "none"): items}}


def test_want_of_memory_names_the_field():
    mend = "lower machine.evaluation_batch"
    with pytest.raises(InputError, match=rf": {mend}, or take another device"), fitting(mend):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    with pytest.raises(RuntimeError, match="of another kind"), fitting():
        raise RuntimeError("of another kind")


def test_a_stage_that_is_loaded_again_makes_no_garbage_immortal():
    load_stage("tasks.text.clean:clean")
    before = gc.get_freeze_count()
    load_stage("tasks.text.clean:clean")
    assert gc.get_freeze_count() == before
