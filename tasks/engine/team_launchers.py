"""Ways to start the nodes of a team: by hand, as a job of Slurm, or as tasks of Ray."""

import json
import time
from pathlib import Path
from typing import Any

from model.files import read_json, write_whole
from tasks.engine.clusters import CutOff, RayCluster, SlurmCluster
from tasks.engine.launcher import HereLauncher, Launcher
from tasks.engine.leases import insist
from tasks.engine.machine import Machine
from tasks.engine.team import (
    POLL_SECONDS,
    STOP,
    TEAM_FOLDER,
    WAITING,
    Team,
    node_command,
    run_node_here,
    write_team,
)

_CANCEL_SECONDS = 3.0
"""What is left for Slurm to cancel a job that was asked to end, and given more than its ranks take to save."""


class _TeamLauncher:
    """What those have in common that run the nodes of a team."""

    team: Team

    def lost(self) -> tuple[str, str] | None:
        """The computer that was lost without a word, and what to say of it; None if none was."""
        return self.team.lost()

    def is_paused(self) -> bool:
        """False: it is never made to wait."""
        return False

    def cut_off(self) -> CutOff | None:
        """None: it has all the time it needs."""
        return None


class JoinedLauncher(_TeamLauncher, HereLauncher):
    """This computer as the first node, and others on which somebody runs `scratchlm join`."""

    def __init__(self, team: Team, store: Path) -> None:
        self.team, self.team_path = team, write_team(team)
        self.offer = store / WAITING / f"{team.identity}.json"
        self.offer.parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(self.offer, json.dumps(str(self.team_path)))
        super().__init__(node_command(self.team_path, 0), team.device)

    def stop(self, seconds: float) -> None:
        """End all nodes."""
        try:
            self.offer.unlink(missing_ok=True)
            insist((self.team.folder / STOP).touch)
        finally:
            super().stop(seconds)

    def told(self) -> str:
        """How many nodes are there."""
        store = self.offer.parent.parent
        missing = self.team.nodes - self.team.count_nodes()
        return (
            f"waits for {missing} of {self.team.nodes} nodes: run `scratchlm join --again --store {store}` there"
            if missing
            else ""
        )


class SlurmLauncher(_TeamLauncher):
    """A batch job of so many nodes, one torchrun a node."""

    def __init__(self, cluster: SlurmCluster, team: Team) -> None:
        from tasks.engine.slurm_cluster import Silence, job_name, submit_nodes

        self.team = team
        command = node_command(write_team(team), "$SLURM_PROCID")
        cluster = cluster.model_copy(update={"cpus_per_job": cluster.cpus_per_job * team.ranks_per_node})
        self.job = submit_nodes(cluster, job_name(team.store, team.key), team.folder, team.nodes, command)
        self.looked, self.silence = time.monotonic(), Silence()
        self.state, self.states = "Slurm jobs: 1 pending", {"PENDING"}

    def poll(self) -> int | None:
        """0 or 1 once the job is not in the queue any more."""
        from tasks.engine.slurm_cluster import queue_of, told_of

        if time.monotonic() - self.looked < 4 * POLL_SECONDS:
            return None
        self.looked = time.monotonic()
        tasks = queue_of(self.job)
        self.silence.note(tasks is not None)
        if tasks is None or tasks:
            self.state = told_of(tasks or [])
            self.states = {state for state, _ in tasks} if tasks else self.states
            return None
        log = self.team.folder / "slurm.log"
        print(log.read_text(errors="replace")[-20_000:] if log.exists() else "", flush=True)
        return read_json(self.team.folder / "status.json") or 0

    def stop(self, seconds: float) -> None:
        """End the job."""
        from tasks.engine.slurm_cluster import cancel, queue_of

        deadline = time.monotonic() + seconds - _CANCEL_SECONDS
        try:
            insist((self.team.folder / STOP).touch)
            # One that is pending does not see it.
            while self.team.count_nodes() and time.monotonic() < deadline and queue_of(self.job) != []:
                time.sleep(POLL_SECONDS)
        finally:
            cancel(self.job)

    def lost(self) -> tuple[str, str] | None:
        """None while the job is suspended, as far as is known: then no node is heard of."""
        return None if self.is_paused() else super().lost()

    def is_paused(self) -> bool:
        """Whether Slurm made it wait, for another job or by hand."""
        return "SUSPENDED" in self.states

    def cut_off(self) -> CutOff | None:
        """Whether the time of the job was over, or another one took its place."""
        from tasks.engine.slurm_cluster import cut_off

        return cut_off(self.job)

    def told(self) -> str:
        """The state of the job, until it runs, and then its nodes may take as long as ranks may to begin."""
        return self.state if self.states != {"RUNNING"} else ""


class RayLauncher(_TeamLauncher):
    """A placement group of so many nodes, one task a node that is torchrun's parent."""

    def __init__(self, cluster: RayCluster, team: Team) -> None:
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from tasks.engine.ray_cluster import connect

        self.team, self.ray = team, connect(cluster)
        path = write_team(team)
        self.statuses: dict[Any, int] = {}
        # For each rank its cores, and an accelerator where the nodes have any.
        bundle = {"CPU": cluster.cpus_per_job * team.ranks_per_node}
        if team.device == "cuda":
            bundle["GPU"] = team.ranks_per_node
        self.group = placement_group([bundle] * team.nodes, strategy="STRICT_SPREAD")
        remote = self.ray.remote(run_node_here)
        self.tasks = [
            remote.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                max_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self.group, placement_group_bundle_index=index
                ),
            ).remote(path, index)
            for index in range(team.nodes)
        ]

    def poll(self) -> int | None:
        """The worst exit status once all tasks are over, or one of them failed."""
        done, waiting = self.ray.wait(self.tasks, num_returns=len(self.tasks), timeout=0)
        for task in set(done) - self.statuses.keys():
            try:
                status, log = self.ray.get(task)
                print(log, flush=True)
            except self.ray.exceptions.RayError as error:
                status = 1
                print(f"a node was lost: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            self.statuses[task] = status
        worst = max(self.statuses.values(), default=0)
        return worst if worst or not waiting else None

    def stop(self, seconds: float) -> None:
        """End the tasks, and give back the nodes."""
        from ray.util.placement_group import remove_placement_group

        waiting = self.tasks
        try:
            insist((self.team.folder / STOP).touch)
            _, waiting = self.ray.wait(self.tasks, num_returns=len(self.tasks), timeout=seconds)
        finally:
            for task in waiting:
                self.ray.cancel(task, force=True)
            remove_placement_group(self.group)

    def told(self) -> str:
        """How many nodes are there."""
        there = self.team.count_nodes()
        return f"{there} of {self.team.nodes} nodes of Ray" if there < self.team.nodes else ""


def launch_team(machine: Machine, team: Team, store: Path) -> Launcher:
    """Start the nodes of a team, each way that there is."""
    for former in team.folder.parent.glob(f"{TEAM_FOLDER}*"):
        # Nodes of a driver that was killed see the lease of this one; this they see, too.
        (former / STOP).touch()
    team.folder.mkdir(mode=0o700, parents=True)
    if isinstance(machine.cluster, SlurmCluster):
        return SlurmLauncher(machine.cluster, team)
    if isinstance(machine.cluster, RayCluster):
        return RayLauncher(machine.cluster, team)
    return JoinedLauncher(team, store)
