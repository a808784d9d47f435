"""A Slurm cluster of two nodes on this computer, from the packages slurmctld, slurmd, slurm-client and munge."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.engine.process import free_port

_UP_SECONDS = 180.0
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "sinfo", "scontrol")


def missing() -> str:
    """Why there can be none here; empty if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    return "" if os.geteuid() == 0 else "the daemons of Slurm need root here"


def _configuration(folder: Path, host: str, ports: list[int]) -> str:
    nodes = "\n".join(
        f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[i]} CPUs=1 RealMemory=4000"
        for i in (1, 2)
    )
    return f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/ctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
ReturnToService=2
MpiDefault=none
KillWait=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10 State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A cluster that runs while the body does; yields the environment in which its commands find it."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool-n1", "spool-n2", "run", "munge"):
        (folder / name).mkdir(mode=0o755)
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o001:
            path.chmod(
                path.stat().st_mode | 0o011
            )  # munged wants every folder above its socket to be passable
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    configuration = folder / "slurm.conf"
    configuration.write_text(_configuration(folder, host, [free_port(), free_port(), free_port()]))
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    commands = [
        [
            "munged",
            f"--key-file={key}",
            f"--socket={folder}/run/munge.sock",
            f"--pid-file={folder}/run/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munge/seed",
            "--force",
        ],
        ["slurmctld", "-f", str(configuration)],
        *(["slurmd", "-f", str(configuration), "-N", node] for node in ("n1", "n2")),
    ]
    try:
        _start(commands, environment, folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--me"], env=environment, capture_output=True)
        for name in ("slurmd-n1", "slurmd-n2", "ctld", "munged"):
            _end(folder / "run" / f"{name}.pid")


class NotHere(Exception):
    """This computer lets no Slurm run, and why."""


def _start(commands: list[list[str]], environment: dict[str, str], folder: Path) -> None:
    """Start the daemons, and wait for both nodes.

    Raises:
        NotHere: if they do not come up.
    """
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise NotHere(f"{command[0]} does not start: {done.stderr.strip()[-300:]}")
    deadline = time.monotonic() + _UP_SECONDS
    while _idle(environment) != 2:
        if time.monotonic() > deadline:
            logs = [path.read_text(errors="replace")[-300:] for path in sorted(folder.glob("*.log"))]
            raise NotHere(f"its nodes do not come up: {' '.join(' '.join(logs).split())}")
        time.sleep(0.2)


def _idle(environment: dict[str, str]) -> int:
    asked = ["sinfo", "-h", "-p", "main", "-N", "-o", "%T"]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True)
    return done.stdout.split().count("idle")


def _end(pid_file: Path) -> None:
    """End a daemon by the file with its process id."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return
            time.sleep(0.1)
