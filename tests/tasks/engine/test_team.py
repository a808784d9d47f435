"""Who is a node of a training, and when it has to end."""

import errno
import json
import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest

from model.errors import InputError, StageFailed
from model.machine import TrainingMachine
from tasks.engine import leases, on_ranks, ranks, slurm_cluster, team, team_launchers
from tasks.engine.clusters import CutOff, SlurmCluster
from tasks.engine.launcher import HereLauncher
from tasks.engine.leases import hold
from tasks.engine.machine import Machine
from tasks.engine.on_ranks import _told_of_lost, run_on_ranks
from tasks.engine.team import (
    STOP,
    TEAM_FOLDER,
    WAITING,
    Team,
    _claim_index,
    is_over,
    join,
    write_team,
)
from tasks.engine.team_launchers import launch_team
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
    assert not list(made.folder.glob(".claim-*"))
    os.utime(claim, (old, old))
    (made.folder / "node-1").touch()
    assert _claim_index(made) is None


def test_nodes_end_with_whoever_asked_and_with_a_later_attempt(made: Team, monkeypatch: pytest.MonkeyPatch):
    assert is_over(made)
    with hold(made.lease) as held:
        assert held
        assert not is_over(made)
        # The next driver of the same training holds the same lease.
        monkeypatch.setattr(team_launchers, "JoinedLauncher", lambda later, store: later)
        later = made.model_copy(update={"folder": made.folder.parent / f"{TEAM_FOLDER}c"})
        launch_team(Machine(nodes=3), later, made.folder)
        assert (made.folder / STOP).exists()
        assert is_over(made)
        assert not is_over(later)


def test_a_controller_that_is_away_ends_nothing_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = tmp_path / "commands"
    away = "!slurm_load_jobs error: Unable to contact slurm controller"
    command_of_slurm(commands, "squeue", away)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    # What is asked for once waits for it, too.
    command_of_slurm(commands, "sinfo", away, "up\n")
    monkeypatch.setattr(slurm_cluster, "_QUEUE_SECONDS", 0.01)
    assert slurm_cluster._slurm("sinfo") == "up\n"
    silence = slurm_cluster.Silence()
    assert slurm_cluster.queue_of("1") is None
    silence.note(False)
    silence.note(True)
    monkeypatch.setattr(slurm_cluster, "_SILENCE_SECONDS", -1.0)
    with pytest.raises(StageFailed, match="has not answered") as failure:
        silence.note(False)
    assert failure.value.retryable


def test_what_jobs_wait_for_is_told():
    tasks = [("RUNNING", "None"), ("PENDING", "Priority"), ("PENDING", "Resources"), ("PENDING", "Priority")]
    assert slurm_cluster.told_of(tasks) == "Slurm jobs: 3 pending, 1 running (Priority)"
    assert slurm_cluster.told_of([]) == "Slurm jobs: none"


class Job(HereLauncher):
    """A job that is over at once; it was ended from outside as long as it leaves no result."""

    reached: ClassVar[list[int]] = []
    why: ClassVar[CutOff] = CutOff.TIME

    def __init__(self, attempt: Path) -> None:
        self.attempt, done = attempt, self.reached.pop(0)
        if done < 9:
            (attempt / ranks.PROGRESS).write_text(json.dumps([done, 9, "steps", ""]))
        else:
            (attempt / ranks.RESULT).write_text(json.dumps("whole"))

    def poll(self) -> int:
        return 0

    def stop(self, seconds: float) -> None:
        """Nothing runs."""

    def cut_off(self) -> CutOff | None:
        return None if (self.attempt / ranks.RESULT).exists() else self.why


def test_a_job_whose_time_is_over_goes_on_in_another_as_long_as_it_comes_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(on_ranks, "_launch", lambda job, *others: Job(job.parent))
    resolved = TrainingMachine(device="cpu", ranks=1)
    run = partial(run_on_ranks, print, {}, resolved, Machine(), tmp_path, goes_on=True)
    monkeypatch.setattr(Job, "reached", [3, 6, 8, 9])
    assert run() == "whole"

    def failure(*reached: int, **others: bool) -> StageFailed:
        monkeypatch.setattr(Job, "reached", [*reached])
        with pytest.raises(StageFailed) as failed:
            run(**others)
        assert len(Job.reached) == 1  # one job was not asked for
        return failed.value

    mend = "raise machine.cluster.time"
    in_vain = failure(3, 6, 6, 9)
    assert str(in_vain).endswith(f"before it came any further than the one before (6): {mend}")
    assert str(failure(0, 9)).endswith(f"before it came to its first step: {mend}")
    # What begins anew in each job is not given another.
    assert str(failure(3, 9, goes_on=False)).endswith(f"before it came to its end: {mend}")
    assert not in_vain.retryable
    # More time is of no use to a job that had to make room, and another attempt is.
    monkeypatch.setattr(Job, "why", CutOff.PREEMPTION)
    for preempted in (failure(0, 9), failure(6, 5, 9), failure(3, 9, goes_on=False)):
        assert preempted.retryable
        assert mend not in str(preempted)


def command_of_slurm(folder: Path, name: str, *answers: str) -> None:
    """A command that gives one answer after the other, the last for ever; one that begins with ! is an error."""
    folder.mkdir(exist_ok=True)
    for number, answer in enumerate(answers):
        (folder / f"{name}-{number}").write_text(answer)
    (folder / f"{name}-count").write_text("0")
    script = f"""#!/bin/sh
n=$(cat {folder}/{name}-count)
echo "$@" >> {folder}/{name}-asked
[ -e {folder}/{name}-$((n + 1)) ] && echo $((n + 1)) > {folder}/{name}-count
case "$(cat {folder}/{name}-$n)" in
!*) tail -c +2 {folder}/{name}-$n >&2; exit 1 ;;
*) cat {folder}/{name}-$n ;;
esac
"""
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def test_a_job_is_submitted_once_though_the_controller_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands = tmp_path / "commands"
    timed_out = "!sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    command_of_slurm(commands, "sbatch", timed_out, "8;main")
    # It took the job all the same, under number 7; of 5 an array is about to end.
    away = "!slurm_load_jobs error: Unable to contact slurm controller"
    command_of_slurm(commands, "squeue", "5", away, "5\n7")
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm_cluster, "_QUEUE_SECONDS", 0.01)
    monkeypatch.setattr(slurm_cluster, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(slurm_cluster, "_VISIBLE_SECONDS", 0.1)
    assert slurm_cluster._sbatch("name", "--wrap", "true") == "7"
    assert len((commands / "sbatch-asked").read_text().splitlines()) == 1
    # It took it twice.
    command_of_slurm(commands, "sbatch", timed_out, timed_out)
    command_of_slurm(commands, "squeue", "5", "5\n7\n8", "")
    command_of_slurm(commands, "scancel", "")
    assert slurm_cluster._sbatch("name", "--wrap", "true") == "8"
    assert (commands / "scancel-asked").read_text() == "7\n"
    # It took none, and is asked again.
    command_of_slurm(commands, "sbatch", timed_out, "8;main")
    command_of_slurm(commands, "squeue", "", "", "")
    assert slurm_cluster._sbatch("name", "--wrap", "true") == "8"
    # It took the first one after all, and shows it late, beside the second.
    command_of_slurm(commands, "sbatch", timed_out, "8;main")
    command_of_slurm(commands, "scancel", "")
    asked = [commands / f"{name}-asked" for name in ("sbatch", "scancel")]
    for path in asked:
        path.unlink(missing_ok=True)
    (commands / "squeue").write_text(
        f'#!/bin/sh\n[ "$(wc -l < {asked[0]})" -gt 1 ] 2> /dev/null && printf "7\\n8\\n" || true\n'
    )
    assert slurm_cluster._sbatch("name", "--wrap", "true") == "8"
    assert asked[1].read_text() == "7\n"
    # A refusal that speaks of contacts is one.
    command_of_slurm(commands, "sbatch", "!your account has expired, contact support")
    with pytest.raises(InputError, match="has expired"):
        slurm_cluster._sbatch("name", "--wrap", "true")


def test_a_job_was_cut_off_if_its_time_was_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = tmp_path / "commands"
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm_cluster, "_QUEUE_SECONDS", 0.01)
    monkeypatch.setattr(slurm_cluster, "_POLL_SECONDS", 0.01)
    away = "!slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    for last, why in (
        ("JobId=7 JobState=TIMEOUT Reason=None", CutOff.TIME),
        ("JobId=7 JobState=PREEMPTED Reason=None", CutOff.PREEMPTION),
        ("JobId=7 JobState=FAILED Reason=None", None),
        ("!slurm_load_jobs error: Invalid job id specified", None),
    ):
        command_of_slurm(commands, "scontrol", "JobId=7 JobState=COMPLETING", away, last)
        assert slurm_cluster.cut_off("7") == why


def test_a_job_that_is_over_when_it_is_cancelled_is_left_over_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands = tmp_path / "commands"
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm_cluster, "_POLL_SECONDS", 0.01)
    gone = "!scancel: error: Kill job error on job id 7: Invalid job id specified"
    command_of_slurm(commands, "squeue", "7", "7", "7", "")
    command_of_slurm(commands, "scancel", gone)
    slurm_cluster._cancel_left_over("name")
    # Once, and then it was waited for.
    assert (commands / "scancel-asked").read_text() == "7\n"
    assert len((commands / "squeue-asked").read_text().splitlines()) == 4
    slurm_cluster.cancel("7")
    assert (commands / "scancel-asked").read_text() == "7\n7\n"
    command_of_slurm(commands, "squeue", "7")
    command_of_slurm(commands, "scancel", "!scancel: error: Access/permission denied")
    with pytest.raises(InputError, match="permission denied"):
        slurm_cluster._cancel_left_over("name")


def test_nodes_of_a_job_start_once_under_our_name(made: Team, monkeypatch: pytest.MonkeyPatch):
    commands = made.store / "commands"
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    command_of_slurm(commands, "squeue", "")
    command_of_slurm(commands, "sbatch", "8")
    own = {"gpus-per-node": "8", "requeue": ""}
    cluster = SlurmCluster(kind="slurm", sbatch={"account": "x"}, sbatch_of_training=own)
    assert slurm_cluster.submit_nodes(cluster, "name", made.folder, 2, ["true"]) == "8"
    asked = (commands / "sbatch-asked").read_text()
    assert "--job-name=name" in asked
    assert "--account=x --gpus-per-node=8 --requeue --wrap" in asked
    # An array of shards has no use for what a training needs.
    assert slurm_cluster.submit(cluster, "name", made.folder, 3, ["true"]) == "8"
    assert "gpus" not in (commands / "sbatch-asked").read_text().splitlines()[-1]
    # A job that starts again by itself would find the STOP of its end.
    assert "--no-requeue" in asked
    with pytest.raises(ValueError, match="job-name is not to be given"):
        SlurmCluster(kind="slurm", sbatch={"job-name": "mine"})
    with pytest.raises(ValueError, match=r"nodes is not to be given: set machine\.nodes"):
        SlurmCluster(kind="slurm", sbatch_of_training={"nodes": "1"})


def test_slurm_is_asked_as_from_outside_of_any_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\nenv\n")
    squeue.chmod(0o755)
    for name in ("SLURM_MEM_PER_NODE", "SQUEUE_STATES", "SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "x")
    seen = slurm_cluster._run(str(squeue)).stdout
    assert "SLURM_MEM_PER_NODE" not in seen
    assert "SQUEUE_STATES" not in seen
    assert "SLURM_CONF=x" in seen
    assert "SBATCH_ACCOUNT=x" in seen


@pytest.mark.parametrize(
    ("text", "why"), [(None, "mount the store under the same path"), ("{}", "another version")]
)
def test_a_training_that_cannot_be_joined_is_told_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    why: str,
):
    (tmp_path / WAITING).mkdir(parents=True)
    (tmp_path / WAITING / "a.json").write_text(json.dumps(str(tmp_path / "team.json")))
    if text:
        (tmp_path / "team.json").write_text(text)
    looks = iter(range(5))

    def sleep(seconds: float) -> None:
        if next(looks, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(team.time, "sleep", sleep)
    monkeypatch.setattr(team, "_OFFER_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        join(tmp_path)
    assert capsys.readouterr().err.count(why) == 1


def test_a_name_that_stands_for_the_loopback_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch):
    """As on Debian, where /etc/hosts has 127.0.1.1 for the computer itself."""
    monkeypatch.setattr(team.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(team.socket, "gethostbyname", lambda name: "127.0.1.1")
    monkeypatch.setattr(team, "_address_towards", lambda host: "10.1.2.3")
    assert team._own_name() == "10.1.2.3"
    monkeypatch.setattr(team, "_address_towards", lambda host: None)
    assert team._own_name() == "here"
    monkeypatch.setattr(team.socket, "gethostbyname", lambda name: "10.1.2.3")
    assert team._own_name() == "here"
    names = {"lo": [Mock(address="127.0.0.1")], "eth7": [Mock(address="10.1.2.3")]}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: names)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    team._speak_from("10.1.2.3")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    team._speak_from("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"


def test_a_job_that_is_suspended_is_not_lost_and_one_that_is_pending_not_waited_for(
    made: Team, monkeypatch: pytest.MonkeyPatch
):
    commands = made.store / "commands"
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    command_of_slurm(commands, "sbatch", "8")
    command_of_slurm(commands, "scancel", "")
    command_of_slurm(commands, "squeue", "", "SUSPENDED|None")
    launcher = team_launchers.SlurmLauncher(SlurmCluster(kind="slurm"), made)
    launcher.looked = -math.inf
    assert launcher.poll() is None
    assert launcher.is_paused()
    assert launcher.lost() is None
    asked = len((commands / "squeue-asked").read_text().splitlines())
    launcher.stop(1000.0)
    assert len((commands / "squeue-asked").read_text().splitlines()) == asked
    assert (commands / "scancel-asked").read_text() == "8\n"


def test_a_store_that_is_silent_for_a_moment_ends_no_node(made: Team, monkeypatch: pytest.MonkeyPatch):
    """What a node writes is written a moment later, also that it has ended."""
    monkeypatch.setattr(leases, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(team, "_run_torchrun", lambda *_: 0)
    own = made.model_copy(update={"has": examine(made.store)})
    silent = {"node-1": 2, "ended-1": 2}
    touch, written = Path.touch, team.write_whole

    def fails(path: Path) -> None:
        if silent.get(path.name, 0):
            silent[path.name] -= 1
            raise OSError(errno.EIO, "silent")

    def touch_later(path: Path, *arguments: Any, **options: Any) -> None:
        fails(path)
        touch(path, *arguments, **options)

    def write_later(path: Path, text: str) -> None:
        fails(path)
        written(path, text)

    monkeypatch.setattr(Path, "touch", touch_later)
    monkeypatch.setattr(team, "write_whole", write_later)
    path = made.store / "team.json"
    path.write_text(own.model_dump_json())
    with hold(made.lease):
        assert team.run_node(path, 1) == 0
    assert (made.folder / "ended-1").exists()
    assert not (made.folder / STOP).exists()
    assert silent == {"node-1": 0, "ended-1": 0}


def test_a_node_that_falls_silent_is_lost_and_one_that_ended_is_not(made: Team):
    for index, host in enumerate(("here", "there")):
        (made.folder / f"node-{index}").write_text(host)
    assert made.lost() is None
    long_ago = time.time() - 60
    os.utime(made.folder / "node-1", (long_ago, long_ago))
    host, told = made.lost() or ("", "")
    assert host == "there"
    assert told.startswith("node 1, there, was not heard of for 30 seconds")
    presence = {3: {"host": "there", "phase": "step"}, 0: {"host": "here", "phase": "load"}}
    assert _told_of_lost(host, told, presence).endswith("; there ran rank 3 on there (step)")
    (made.folder / "ended-1").touch()
    assert made.lost() is None


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
