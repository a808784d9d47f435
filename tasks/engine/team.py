"""Ranks on several computers: who takes part, how they find each other, and how all of them end together.

What all have to know is a file of the store: the team. The first node says in a file beside it where the others meet it
(torchrun's c10d rendezvous). Each node watches that whoever asked is there still, and that one watches the nodes: of a computer
that is switched off no connection is closed.
"""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from model.errors import InputError
from model.files import read_json, write_whole
from tasks.engine import process
from tasks.engine.launcher import HereLauncher
from tasks.engine.leases import (
    STALE_SECONDS,
    TOUCH_SECONDS,
    file_system_time,
    insist,
    is_held,
    store_may_be_silent,
)

TEAM, STOP, MEETING = "team.json", "stop", "meeting.json"
TEAM_FOLDER = "team-"
"""Below the working folder of a stage: a folder for each attempt to start its nodes."""
WAITING = "teams"
"""Folder of a store with the teams that wait for a computer on which `scratchlm join` runs."""
POLL_SECONDS, _STOP_SECONDS = 0.5, 15.0
_LOOPBACK = "127."
_JOIN_SECONDS, _CLAIM_SECONDS, _OFFER_SECONDS = 7 * 24 * 3600, 300.0, 15.0


class Team(BaseModel):
    """What a node has to know to take part.

    Attributes:
        identity: of this attempt.
        key: of the result that is built.
        folder: where the nodes leave word for each other.
        lease: touched by whoever asked, for as long as that lives.
        has: what whoever asked has, see `tasks.engine.worker.examine`.
    """

    model_config = ConfigDict(extra="forbid")
    identity: str
    key: str
    store: Path
    job: Path
    folder: Path
    lease: Path
    nodes: int
    ranks_per_node: int
    device: str
    has: dict[str, Any]

    def count_nodes(self) -> int:
        """Nodes that have begun."""
        return len(list(self.folder.glob("node-*")))

    def lost(self) -> tuple[str, str] | None:
        """Which node has begun, has not ended, and was not heard of for half a minute: its host, and what to say of it."""
        with store_may_be_silent():
            return self._lost()
        return None

    def _lost(self) -> tuple[str, str] | None:
        for path in sorted(self.folder.glob("node-*")):
            index = path.name.removeprefix("node-")
            # It says that it ends before it falls silent.
            if not is_held(path) and not (self.folder / f"ended-{index}").exists():
                host = path.read_text()
                return host, (
                    f"node {index}, {host}, was not heard of for {STALE_SECONDS:.0f} seconds: it was switched off or stopped, or "
                    "does not reach the store"
                )
        return None


def node_command(team: Path, index: int | str) -> list[str]:
    """The command that is one node of a team."""
    return [sys.executable, "-m", "tasks.engine.ranks", "node", str(team), str(index)]


def write_team(team: Team) -> Path:
    """Write what the nodes have to know; returns the file."""
    path = team.folder / TEAM
    write_whole(path, team.model_dump_json())
    return path


def differences(team: Team) -> list[str]:
    """How this computer differs from the one that asked."""
    from tasks.engine.worker import compare, examine

    return compare(team.has, examine(team.folder))


def _meet(team: Team, index: int) -> tuple[str, bool]:
    """HOST:PORT at which the nodes meet, and whether that is here."""
    path = team.folder / MEETING
    if index == 0:
        host = "127.0.0.1" if team.nodes == 1 else _own_name()
        endpoint = f"{host}:{process.free_port()}"
        insist(lambda: write_whole(path, json.dumps(endpoint)))
        return endpoint, True
    while not (endpoint := read_json(path)):
        if is_over(team):
            raise SystemExit(1)
        with store_may_be_silent():
            (team.folder / f"node-{index}").touch()
        time.sleep(POLL_SECONDS)
    return endpoint, False


def _address_towards(host: str) -> str | None:
    """The address with which this computer speaks to another one; None if that is not known. Nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect((host, 9))
        return str(asked.getsockname()[0])
    return None


def _own_name() -> str:
    """Under which other computers reach this one: its name, or its address where its own name for itself is of the loopback."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = _LOOPBACK
    # An address of nobody (RFC 5737), to which the way to others leads.
    return (_address_towards("198.51.100.1") or name) if address.startswith(_LOOPBACK) else name


def _speak_from(address: str) -> None:
    """Let gloo, by which ranks agree, use the interface with this address, and not the one that this computer's name stands for."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if address in [each.address for each in addresses]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def is_over(team: Team) -> bool:
    """Whether the nodes have to end: they were asked to, or whoever asked is gone."""
    with store_may_be_silent():
        return (team.folder / STOP).exists() or not is_held(team.lease)
    return False


def run_node(team_path: Path, index: int) -> int:
    """Run torchrun as one node, until it ends or has to; returns its exit status."""
    from tasks.engine import ranks

    team = Team.model_validate_json(team_path.read_bytes())
    told = differences(team)
    if told:
        sentence = (
            f"node {socket.gethostname()} has {'; '.join(told)}: install the same code and libraries there"
        )
        write_whole(
            team.job.parent / ranks.ERRORS.replace("*", str(index)),
            json.dumps((time.time_ns(), "input", sentence)),
        )
        return 1
    presence = team.folder / f"node-{index}"
    insist(lambda: write_whole(presence, socket.gethostname()))
    try:
        status = _run_torchrun(team, index, presence)
        if status and not is_over(team):
            # So that no other node waits for peers that are not there any more.
            insist(lambda: write_whole(team.folder / "status.json", json.dumps(abs(status))))
            insist((team.folder / STOP).touch)
        return status
    except BaseException:
        insist((team.folder / STOP).touch)
        raise
    finally:
        insist((team.folder / f"ended-{index}").touch)


def _run_torchrun(team: Team, index: int, presence: Path) -> int:
    """Run torchrun as one node, and touch its presence, until it ends or has to; returns its exit status."""
    from tasks.engine import ranks

    endpoint, is_here = _meet(team, index)
    address = _address_towards(endpoint.rpartition(":")[0])
    if team.nodes > 1 and address and not address.startswith(_LOOPBACK):
        _speak_from(address)
    else:
        address = socket.gethostname()
    arguments = [
        sys.executable,
        "-m",
        ranks.__name__,
        "torchrun",
        str(team.ranks_per_node),
        str(team.job),
        f"--nnodes={team.nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={team.identity}",
        f"--rdzv-conf=is_host={str(is_here).lower()},join_timeout={_JOIN_SECONDS}",
        f"--local-addr={address}",
    ]
    launcher, touched = HereLauncher(arguments, team.device), time.monotonic()
    try:
        while (status := launcher.poll()) is None:
            if is_over(team):
                return 1
            if time.monotonic() - touched > TOUCH_SECONDS:
                with store_may_be_silent():
                    presence.touch()
                touched = time.monotonic()
            time.sleep(POLL_SECONDS)
        return status
    finally:
        launcher.stop(_STOP_SECONDS)


def run_node_here(team_path: Path, index: int) -> tuple[int, str]:
    """`run_node` in a child process; returns its exit status and the end of what it printed."""
    log = team_path.parent / f"printed-{index}.log"
    with log.open("wb") as printed:
        child = subprocess.Popen(
            node_command(team_path, index),
            env=process.child_environment(),
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        try:
            status = child.wait()
        finally:
            process.stop(child, _STOP_SECONDS)
    return status, log.read_text(errors="replace")[-20_000:]


def join(store: Path) -> int:
    """Take part in the next training of a store that waits for this computer; returns the exit status of its ranks.

    Raises:
        InputError: if this computer differs from the one that asked, or the folder is no store.
    """
    if not store.is_dir():
        raise InputError(
            f"--store {store}: there is no such folder on this computer: mount the store here under the same path"
        )
    seen_at: dict[Path, float] = {}
    while True:
        for offer in sorted((store / WAITING).glob("*.json")):
            path = Path(read_json(offer) or "")
            try:
                team = Team.model_validate_json(path.read_bytes())
                index = None if is_over(team) else _claim_index(team)
            except (OSError, ValueError) as error:
                # Of one that has just ended the folder goes, and the offer then.
                if time.monotonic() - seen_at.setdefault(offer, time.monotonic()) > _OFFER_SECONDS:
                    seen_at[offer] = math.inf
                    print(_not_joined(path, error), file=sys.stderr, flush=True)
                continue
            if index is not None:
                return _join_team(team, path, index)
        time.sleep(POLL_SECONDS)


def _not_joined(team: Path, error: Exception) -> str:
    """Why a training that waits is not joined."""
    if isinstance(error, OSError):
        return f"a training waits that is not seen here ({team}: {error.strerror}): mount the store under the same path on all computers"
    return f"a training waits that another version of scratchlm began ({team}): install the same one here"


def _join_team(team: Team, path: Path, index: int) -> int:
    told = differences(team)
    if told:
        (team.folder / f"claim-{index}").unlink()
        raise InputError(
            f"this computer has {'; '.join(told)}: install the same code and libraries (pip install -c constraints.txt -e .)"
        )
    child = subprocess.Popen(node_command(path, index), env=process.child_environment())
    try:
        return child.wait()
    finally:
        process.stop(child, _STOP_SECONDS)
        if not (team.folder / f"node-{index}").exists():
            (team.folder / f"claim-{index}").unlink(missing_ok=True)  # for another computer


def _claim_index(team: Team) -> int | None:
    """Number of a node that nobody is yet; the first is whoever asked."""
    for index in range(1, team.nodes):
        claim = team.folder / f"claim-{index}"
        with contextlib.suppress(FileNotFoundError):
            # Whoever claimed it came no further: it was killed, or lost its network.
            is_old = file_system_time(team.folder) - claim.stat().st_mtime > _CLAIM_SECONDS
            if is_old and not (team.folder / f"node-{index}").exists():
                # Of several that see it one takes it away, and no claim that is newer.
                aside = claim.with_name(f".{claim.name}-{uuid.uuid4().hex}")
                claim.rename(aside)
                if file_system_time(team.folder) - aside.stat().st_mtime <= _CLAIM_SECONDS:
                    try:
                        with contextlib.suppress(FileExistsError):
                            os.link(aside, claim)
                    except OSError:
                        aside.rename(claim)  # where there are no hard links
                aside.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            claim.touch(exist_ok=False)
            return index
    return None
