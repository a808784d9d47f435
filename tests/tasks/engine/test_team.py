"""Who is a node of a training, and when it has to end."""

import json
import os
import stat
import time
from pathlib import Path

import pytest

from model.errors import InputError, StageFailed
from tasks.engine import slurm_cluster, team
from tasks.engine.leases import hold
from tasks.engine.team import (
    STOP,
    TEAM_FOLDER,
    WAITING,
    Team,
    _claim_index,
    is_over,
    join,
    launch_team,
    write_team,
)
from tasks.engine.worker import build_one, compare, examine


@pytest.fixture
def made(tmp_path: Path) -> Team:
    folder = tmp_path / "work" / f"{TEAM_FOLDER}b"
    folder.mkdir(parents=True)
    return Team(
        identity="b",
        key="k",
        store=tmp_path,
        job=tmp_path / "job.json",
        folder=folder,
        lease=tmp_path / "lease",
        nodes=3,
        ranks_per_node=1,
        device="cpu",
        has={},
    )


def test_a_seat_is_taken_once_and_is_free_again_if_nobody_sat_down(made: Team):
    assert [_claim_index(made) for _ in range(3)] == [1, 2, None]
    claim = made.folder / "claim-1"
    old = claim.stat().st_mtime - 2 * team._CLAIM_SECONDS
    os.utime(claim, (old, old))
    assert _claim_index(made) == 1
    os.utime(claim, (old, old))
    (made.folder / "node-1").touch()
    assert _claim_index(made) is None


def test_nodes_end_with_whoever_asked_and_with_a_later_attempt(made: Team, monkeypatch: pytest.MonkeyPatch):
    assert is_over(made)
    with hold(made.lease) as held:
        assert held
        assert not is_over(made)
        # The next driver of the same training holds the same lease.
        monkeypatch.setattr(team, "JoinedLauncher", lambda later, store: later)
        later = made.model_copy(update={"folder": made.folder.parent / f"{TEAM_FOLDER}c"})
        launch_team(team.Machine(nodes=3), later, made.folder)
        assert (made.folder / STOP).exists()
        assert is_over(made)
        assert not is_over(later)


def test_a_controller_that_is_away_ends_nothing_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    squeue = tmp_path / "squeue"
    squeue.write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n"
    )
    squeue.chmod(squeue.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    silence = slurm_cluster.Silence()
    assert slurm_cluster.queue_of("1") is None
    silence.note(False)
    silence.note(True)
    monkeypatch.setattr(slurm_cluster, "_SILENCE_SECONDS", -1.0)
    with pytest.raises(StageFailed, match="has not answered") as failure:
        silence.note(False)
    assert failure.value.retryable


def test_a_node_that_falls_silent_is_lost_and_one_that_ended_is_not(made: Team):
    for index, host in enumerate(("here", "there")):
        (made.folder / f"node-{index}").write_text(host)
    assert made.lost() == ""
    long_ago = time.time() - 60
    os.utime(made.folder / "node-1", (long_ago, long_ago))
    assert made.lost().startswith("node 1, there, was not heard of for 30 seconds")
    (made.folder / "ended-1").touch()
    assert made.lost() == ""


def test_a_computer_that_differs_does_not_join_and_leaves_its_seat(made: Team):
    store = made.store
    store.mkdir(exist_ok=True)
    own = examine(store)
    other = made.model_copy(update={"has": {**own, "code": {**own["code"], "model/loss.py": "another"}}})
    (store / WAITING).mkdir()
    (store / WAITING / "x.json").write_text(json.dumps(str(write_team(other))))
    with hold(other.lease) as held:
        assert held
        with pytest.raises(InputError, match=r"this computer has other code in model/loss\.py"):
            join(store)
    assert not (other.folder / "claim-1").exists()


def test_what_differs_on_a_node_is_named(tmp_path: Path):
    own = examine(tmp_path)
    assert compare(own, own) == []
    node = {**own, "sees_store": False, "python": "3.9", "format": 1}
    node["libraries"] = {name: version for name, version in own["libraries"].items() if name != "torch"}
    node["libraries"]["numpy"] = "1.0"
    told = compare(own, node)
    assert told[0] == "it does not see the store"
    assert f"python 3.9 instead of {own['python']}" in told
    assert f"numpy 1.0 instead of {own['libraries']['numpy']}" in told
    assert "without torch" in told


def test_a_worker_that_does_not_see_the_store_says_so(tmp_path: Path):
    told = build_one(tmp_path / "spec.json", 0)
    assert "mount the store under the same path on every node" in json.dumps(told)
