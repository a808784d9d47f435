"""promote_model: the champion of a recipe name, and how it came to be.

STORE/champions/NAME.json is pointer and history in one file, replaced by one rename: there is
no moment at which the one says something else than the other.
"""

import fcntl
import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.errors import InputError
from tasks.store.store import Store

PROMOTED, REFUSED, ROLLED_BACK = "promoted", "refused", "rolled back"


class Event(BaseModel):
    """One line of the history."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str
    event: str
    run: str
    by: str
    reason: str
    former: str | None = None


class Champions(BaseModel):
    """The champion of one recipe name, by the name of its run, and everything that happened."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    champion: str | None = None
    history: tuple[Event, ...] = ()


def champions_file(store: Store, name: str) -> Path:
    """Where the champion of a recipe name is written down."""
    return store.root / "champions" / f"{name}.json"


def read_champions(store: Store, name: str) -> Champions:
    """Champion and history of a recipe name; empty if there is none.

    Raises:
        InputError: if the file is there and cannot be read.
    """
    path = champions_file(store, name)
    try:
        return Champions.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Champions()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}): restore it from a copy, or remove it") from error


def user() -> str:
    """Who is at work, for the record."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"user {os.getuid()}"


@contextmanager
def _changing(store: Store, name: str) -> Iterator[list[Champions]]:
    """Hold the file; what is put into the list replaces it."""
    path = champions_file(store, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        box = [read_champions(store, name)]
        before = box[0]
        yield box
        if box[0] != before:
            building = path.with_suffix(f".{os.getpid()}")
            with building.open("w") as file:
                file.write(box[0].model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(building, path)


def _event(event: str, run: str, by: str | None, reason: str, former: str | None = None) -> Event:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Event(at=at, event=event, run=run, by=by or user(), reason=reason, former=former)


def promote_model(store: Store, name: str, run: str, reason: str, *, former: str | None, by: str | None = None) -> Champions:
    """Make a run the champion of a recipe name.

    Raises:
        InputError: if the champion is not `former` any more, with which the run was compared.
    """
    with _changing(store, name) as box:
        if box[0].champion not in (former, run):
            raise InputError(
                f"the champion of {name!r} is {box[0].champion} now, not {former}, with which {run} was compared: "
                "start the retraining again"
            )
        if box[0].champion != run:
            event = _event(PROMOTED, run, by, reason, box[0].champion)
            box[0] = Champions(champion=run, history=(*box[0].history, event))
    return box[0]


def refuse_model(store: Store, name: str, run: str, reason: str, *, by: str | None = None) -> Champions:
    """Write down that a challenger did not become the champion."""
    with _changing(store, name) as box:
        box[0] = box[0].model_copy(update={"history": (*box[0].history, _event(REFUSED, run, by, reason))})
    return box[0]


def roll_back(store: Store, name: str, reason: str, *, by: str | None = None) -> Champions:
    """Make the champion before this one the champion again.

    Raises:
        InputError: if there is none.
    """
    with _changing(store, name) as box:
        current = box[0].champion
        # A run that was rolled back to has the same predecessor as when it was promoted.
        promoted = [event for event in box[0].history if event.event == PROMOTED and event.run == current]
        if not promoted or promoted[-1].former is None:
            raise InputError(f"there is no champion of {name!r} before {current or 'the first one'}: nothing to roll back to")
        former = promoted[-1].former
        event = _event(ROLLED_BACK, former, by, reason, current)
        box[0] = Champions(champion=former, history=(*box[0].history, event))
    return box[0]
