"""Workers of a Slurm cluster: an array of batch jobs, each with its part of the shards.

sbatch arrays, and not datatrove's SlurmPipelineExecutor: that ends when it has submitted, and says nothing of a task that
is lost. Here the driver stays, follows the array, and submits again what did not come to its end; the store alone says
what is done.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from model.errors import InputError, StageFailed
from model.files import write_whole
from tasks.engine import worker
from tasks.engine.clusters import CutOff, SlurmCluster
from tasks.engine.failures import raise_described
from tasks.engine.job import read_spec
from tasks.engine.secrets import redact
from tasks.engine.store import Store

_POLL_SECONDS, _QUEUE_SECONDS = 0.5, 2.0
_VISIBLE_SECONDS = 10.0
"""What a node wrote before it ended is seen by then."""
_LOST_ARRAYS = 5
"""Arrays without a finished shard after which it is no accident."""
_TAIL_LINES = 40
_SILENCE_SECONDS, _CANCEL_ATTEMPTS = 600.0, 5
"""A controller that is started again is away for minutes, and its jobs run on."""
_NO_ANSWER = (
    *(
        "Unable to contact",
        "timed out",
        "Connection refused",
        "Connection reset",
        "Zero Bytes were transmitted",
    ),
    *("Transport endpoint is not connected", "in standby mode", "Unexpected message received"),
)
"""What Slurm's commands say if it does not answer."""
_GONE = ("Invalid job id", "already complet")
"""What scancel says of a job that is over."""
_OF_THE_CLUSTER = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}
"""Variables that say which cluster is asked, and not what job one is in."""
_COMPLETING_SECONDS = 120.0
"""What a job that is ended may take for it: KillWait, and an epilog."""


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of Slurm as if outside of any job, and with no filters of a person's own on what it lists."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in _OF_THE_CLUSTER or not name.startswith(("SLURM_", "SQUEUE_", "SINFO_", "SCANCEL_"))
    }
    return subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=inherited)


def _flags(options: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" if value else f"--{name}" for name, value in options.items()]


def _asked(*arguments: str) -> str | None:
    """What a command of Slurm prints; None if the controller did not answer.

    Raises:
        InputError: if it is not installed, or refuses what it is asked for.
    """
    if shutil.which(arguments[0]) is None:
        raise InputError(
            f"machine.cluster is slurm, and there is no command {arguments[0]} here: run on a login node of the cluster"
        )
    done = _run(*arguments)
    if not done.returncode:
        return done.stdout
    sentence = " ".join(done.stderr.split()) or f"status {done.returncode}"
    if not any(words in sentence for words in _NO_ANSWER):
        raise InputError(f"machine.cluster: {arguments[0]} refuses: {sentence}")
    print(f"Slurm does not answer, it is waited for: {sentence}", file=sys.stderr, flush=True)
    return None


def _slurm(*arguments: str) -> str:
    """The same, of a command that may be repeated: a controller that does not answer is waited for.

    Raises:
        StageFailed: if it has not answered for `_SILENCE_SECONDS`.
    """
    silence = Silence()
    while (answer := _asked(*arguments)) is None:
        silence.note(answered=False)
        time.sleep(_QUEUE_SECONDS)
    return answer


def _sbatch(name: str, *arguments: str) -> str:
    """Submit a job of this name, once; returns its number. If no answer came, it may be there all the same."""
    former, silence, is_doubtful = _jobs_of(name), Silence(), False
    while (answer := _asked("sbatch", "--parsable", f"--job-name={name}", *arguments)) is None:
        silence.note(answered=False)
        if job := _submitted(name, former):
            return job
        is_doubtful = True
    job = answer.split(";")[0].strip()
    # One of those without an answer may have turned up late.
    for other in _jobs_of(name) - former - {job} if is_doubtful else ():
        _scancel(other)
    return job


def _submitted(name: str, former: set[str]) -> str | None:
    """A job that was taken though no answer came, which is looked for a little while; of several the last, alone."""
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not (jobs := sorted(_jobs_of(name) - former, key=int)):
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL_SECONDS)
    for job in jobs[:-1]:
        _scancel(job)
    return jobs[-1]


def _scancel(job: str) -> None:
    """End a job, unless it is over; a controller that does not answer is waited for."""
    try:
        _slurm("scancel", job)
    except InputError as error:
        if not any(words in str(error) for words in _GONE):
            raise


def _jobs_of(name: str) -> set[str]:
    """Numbers of the jobs of this name that are not over."""
    return set(_slurm("squeue", "--me", "--noheader", f"--name={name}", "--format=%F").split())


def submit(cluster: SlurmCluster, name: str, folder: Path, n_jobs: int, command: list[str]) -> str:
    """Submit an array whose tasks run `command` with $SLURM_ARRAY_TASK_ID at its end; returns its number."""
    options = {
        "array": f"0-{n_jobs - 1}",
        "output": str(folder / "%a.log"),
        "time": cluster.time,
        "cpus-per-task": str(cluster.cpus_per_job),
        "chdir": str(folder),
        "open-mode": "append",
        **({"partition": cluster.partition} if cluster.partition else {}),
        **cluster.sbatch,
    }
    return _sbatch(name, *_flags(options), "--wrap", f'exec {shlex.join(command)} "$SLURM_ARRAY_TASK_ID"')


def job_name(store: Path, key: str) -> str:
    """Name of the jobs that build a key of a store: by it those of a driver that was killed are found."""
    return f"scratchlm-{hashlib.sha256(str(store).encode()).hexdigest()[:8]}-{key}"


def submit_nodes(cluster: SlurmCluster, name: str, folder: Path, n_nodes: int, command: list[str]) -> str:
    """Submit a job of so many nodes that runs `command` once on each; $SLURM_PROCID in it is the number of the node."""
    _cancel_left_over(name)
    options = {
        "nodes": str(n_nodes),
        "ntasks-per-node": "1",
        "output": str(folder / "slurm.log"),
        "time": cluster.time,
        "cpus-per-task": str(cluster.cpus_per_job),
        **({"partition": cluster.partition} if cluster.partition else {}),
        **cluster.sbatch,
        **cluster.sbatch_of_training,
    }
    # A job that starts again by itself would find what its end has left; whoever asked submits another.
    flags = ["--no-requeue", *_flags(options)]
    # srun itself does not know the number of a task; the shell that it starts on each node does.
    inner = " ".join(part if part.startswith("$") else shlex.quote(part) for part in command)
    # From 22.05 on srun does not take over what sbatch was told of cores.
    srun = f"srun --kill-on-bad-exit=1 --cpus-per-task={options['cpus-per-task']}"
    script = f"exec {srun} sh -c {shlex.quote('exec ' + inner)}"
    return _sbatch(name, *flags, "--wrap", script)


def _cancel_left_over(name: str) -> None:
    """End the jobs of this name, such as those of a driver that was killed, and wait a little until they are gone."""
    deadline, cancelled = time.monotonic() + _VISIBLE_SECONDS, set[str]()
    while jobs := _jobs_of(name):
        for job in sorted(jobs - cancelled):
            _scancel(job)
        cancelled |= jobs
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_SECONDS)


def queue_of(job: str) -> list[tuple[str, str]] | None:
    """State and reason of each task of a job that is not over; None while Slurm does not answer."""
    done = _run("squeue", "--noheader", "--array", f"--jobs={job}", "--format=%T|%r")
    if done.returncode and "Invalid job id" not in done.stderr:
        print(f"squeue: {' '.join(done.stderr.split())}", flush=True)
        return None
    lines = [line.partition("|") for line in done.stdout.splitlines() if line]
    return [(state, reason) for state, _, reason in lines if state != "COMPLETING"]


def cut_off(job: str) -> CutOff | None:
    """Why Slurm ended a job from outside: its time was over, or another one took its place; None if it did not."""
    deadline = time.monotonic() + _COMPLETING_SECONDS
    while True:
        try:
            words = _slurm("scontrol", "show", "job", "--oneliner", job).split()
        except InputError:
            return None  # it is too long ago
        if "JobState=COMPLETING" not in words or time.monotonic() > deadline:
            return next((why for why in CutOff if f"JobState={why.value}" in words), None)
        time.sleep(_POLL_SECONDS)


def cancel(job: str) -> None:
    """End a job, whatever Slurm's controller is at: it may be starting again."""
    for _ in range(_CANCEL_ATTEMPTS):
        done = _run("scancel", job)
        if not done.returncode or any(words in done.stderr for words in _GONE):
            return
        time.sleep(_QUEUE_SECONDS)
    print(f"scancel {job} was refused {_CANCEL_ATTEMPTS} times: cancel it by hand", flush=True)


class Silence:
    """For how long Slurm has not answered."""

    def __init__(self) -> None:
        self.since: float | None = None

    def note(self, answered: bool) -> None:
        """Say whether it answered.

        Raises:
            StageFailed: if it has not for `_SILENCE_SECONDS`.
        """
        if answered:
            self.since = None
            return
        self.since = self.since or time.monotonic()
        if time.monotonic() - self.since > _SILENCE_SECONDS:
            raise StageFailed(f"Slurm has not answered for {_SILENCE_SECONDS:.0f} seconds", retryable=True)


def told_of(tasks: list[tuple[str, str]]) -> str:
    states = Counter(state.lower() for state, _ in tasks)
    waits = sorted({reason for state, reason in tasks if state == "PENDING" and reason not in ("None", "")})
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"Slurm jobs: {counts or 'none'}{f' ({waits[0]})' if waits else ''}"


class _Results:
    """What the tasks of an array have written so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: dict[Path, int] = {}

    def new(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self.folder.glob("results-*.jsonl")):
            with path.open("rb") as file:
                file.seek(self.read.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self.read[path] = self.read.get(path, 0) + len(line)
                    # A process that was killed in the middle of a line says nothing with it.
                    with suppress(ValueError):
                        yield {
                            "log": self.folder / f"{path.stem.removeprefix('results-')}.log",
                            **json.loads(line),
                        }


def build_on_slurm(
    cluster: SlurmCluster, spec_path: Path, stage: str, positions: Sequence[int]
) -> Iterator[bool | str]:
    """Build the shards at `positions`; yields for each whether it was built, and in between what the jobs do.

    Raises:
        InputError, StageFailed: as a shard does, with its position and its node; or if jobs are lost again and again.
    """
    spec = read_spec(spec_path)
    name, attempts = job_name(spec.store, spec.key), Store(spec.store).attempts(stage, spec.key)
    _cancel_left_over(name)
    missing, fruitless = list(positions), 0
    for attempt in range(10**6):
        before = len(missing)
        # Not where it is built, since that becomes the result.
        folder = attempts / f"array-{attempt:03d}-{uuid.uuid4().hex[:8]}"
        for told in _run_array(cluster, name, folder, spec_path, missing):
            if isinstance(told, str):
                yield told
                continue
            if "error" in told:
                # With the traceback, and what it printed before.
                print(_tail(told["log"]) or told["traceback"], flush=True)
                raise_described(told, stage)
            if told["position"] in missing:
                missing.remove(told["position"])
                yield bool(told["built"])
        if not missing:
            return
        fruitless = 0 if len(missing) < before else fruitless + 1
        if fruitless == _LOST_ARRAYS:
            raise StageFailed(
                f"{_LOST_ARRAYS} arrays of Slurm ended without a shard of {stage}, perhaps for want of memory or time "
                f"(machine.cluster.sbatch, machine.cluster.time), or because its nodes do not see the store (`scratchlm doctor "
                f"--cluster`); their logs are in {folder}\n{chr(10).join(map(_tail, sorted(folder.glob('*.log'))[:3]))}",
                retryable=False,
            )


def _tail(log: Path) -> str:
    """The last lines of the log of a task."""
    with suppress(FileNotFoundError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
    return ""


def _run_array(
    cluster: SlurmCluster, name: str, folder: Path, spec_path: Path, positions: list[int]
) -> Iterator[dict[str, Any] | str]:
    """Submit an array and follow it until nothing of it is left; however this ends, nothing of it stays in the queue."""
    folder.mkdir(mode=0o700, parents=True)
    n_jobs = min(len(positions), cluster.jobs)
    for job in range(n_jobs):
        (folder / f"positions-{job}.json").write_text(json.dumps(positions[job::n_jobs]))
    results, waiting = _Results(folder), set(positions)
    command = [sys.executable, "-m", worker.__name__, "--array", str(spec_path), str(folder)]
    array = submit(cluster, name, folder, n_jobs, command)
    looked, over_since, silence = 0.0, None, Silence()
    try:
        while True:
            for told in results.new():
                waiting.discard(told["position"])
                yield told
            if not waiting:
                return
            now = time.monotonic()
            if now - looked > _QUEUE_SECONDS:
                looked, tasks = now, queue_of(array)
                silence.note(tasks is not None)
                over_since = over_since or now if tasks == [] else None
                yield "Slurm does not answer" if tasks is None else told_of(tasks)
            if over_since and now - over_since > _VISIBLE_SECONDS:
                return
            time.sleep(_POLL_SECONDS)
    finally:
        cancel(array)
        _redact_logs(array, folder)


def _redact_logs(array: str, folder: Path) -> None:
    """Strike secrets out of what tasks printed, which Slurm writes as it comes, once none of them prints any more."""
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while queue_of(array) != [] and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for log in folder.glob("*.log"):
        with suppress(OSError):
            write_whole(log, redact(log.read_text(errors="replace")))


def examine_nodes(cluster: SlurmCluster, folder: Path) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """What each node of the partition has, see `tasks.engine.worker.examine`; which did not say; and which failed at it."""
    where = (f"--partition={cluster.partition}",) if cluster.partition else ()

    def names(kind: str) -> set[str]:
        listed = _slurm("sinfo", "--noheader", "--Node", kind, "--format=%N %P", *where).splitlines()
        # Without a partition jobs go to the default one, which has a star.
        return {name for name, partition in map(str.split, listed) if where or partition.endswith("*")}

    nodes, down = sorted(names("--responding")), sorted(names("--dead"))
    command = [sys.executable, "-m", worker.__name__, "--examine", str(folder)]
    jobs = []
    try:
        for node in nodes:
            one = cluster.model_copy(update={"sbatch": {**cluster.sbatch, "nodelist": node}})
            jobs.append(submit(one, f"scratchlm{folder.name}-{node}", folder, 1, command))
        deadline = time.monotonic() + _DOCTOR_SECONDS
        while time.monotonic() < deadline and len(list(folder.glob("*.json"))) < len(nodes):
            time.sleep(_POLL_SECONDS)
    finally:
        for job in jobs:
            cancel(job)
    told = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    hosts = {seen["host"].split(".")[0] for seen in told}
    silent = [f"{node} (no answer within {_DOCTOR_SECONDS:.0f} s; it may be busy)" for node in nodes]
    missing = len(nodes) - len(told)
    unheard = [said for node, said in zip(nodes, silent, strict=True) if node not in hosts][:missing]
    return told, [f"{node} (Slurm says that it is down)" for node in down] + unheard, []


_DOCTOR_SECONDS = 120.0
