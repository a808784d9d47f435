"""The champion of a recipe name, and how it came to be.

STORE/champions/NAME.json is pointer and history in one file, replaced by one rename: there is
no moment at which the one says something else than the other.
"""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from flows.runs.record import Run, load_run, now, runs_folder
from model.errors import InputError
from model.files import read_record, write_record
from tasks.engine.store import Store, flock

if TYPE_CHECKING:
    from flows.recipe.recipe import Recipe

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
        return Champions.model_validate(read_record(path))
    except FileNotFoundError:
        return Champions()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it from a copy, or remove it") from error


def user() -> str:
    """Who is at work, for the record."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"user {os.getuid()}"


@contextmanager
def _held(store: Store, name: str) -> Iterator[Champions]:
    """Hold the right to change the file; yields what it says now."""
    with flock(champions_file(store, name).with_suffix(".lock")):
        yield read_champions(store, name)


def _replace(store: Store, name: str, champions: Champions) -> Champions:
    write_record(champions_file(store, name), champions.model_dump(mode="json"))
    return champions


def _event(event: str, run: str, by: str | None, reason: str, former: str | None = None) -> Event:
    return Event(at=now(), event=event, run=run, by=by or user(), reason=reason, former=former)


def promote_model(
    store: Store, name: str, run: str, reason: str, *, former: str | None, by: str | None = None
) -> Champions:
    """Make a run the champion of a recipe name.

    Raises:
        InputError: if the champion is not `former` any more, with which the run was compared.
    """
    with _held(store, name) as champions:
        if champions.champion == run:
            return champions
        if champions.champion != former:
            raise InputError(
                f"the champion of {name!r} is {champions.champion} now, not {former}, with which {run} was compared: "
                "start the retraining again"
            )
        event = _event(PROMOTED, run, by, reason, champions.champion)
        return _replace(store, name, Champions(champion=run, history=(*champions.history, event)))


def refuse_model(store: Store, name: str, run: str, reason: str, *, by: str | None = None) -> Champions:
    """Write down that a challenger did not become the champion."""
    with _held(store, name) as champions:
        history = (*champions.history, _event(REFUSED, run, by, reason))
        return _replace(store, name, champions.model_copy(update={"history": history}))


def roll_back(store: Store, name: str, reason: str, *, by: str | None = None) -> Champions:
    """Make the champion before this one the champion again.

    Raises:
        InputError: if there is none.
    """
    with _held(store, name) as champions:
        current = champions.champion
        # A run that was rolled back to has the same predecessor as when it was promoted.
        promoted = [event for event in champions.history if event.event == PROMOTED and event.run == current]
        if not promoted or promoted[-1].former is None:
            raise InputError(
                f"there is no champion of {name!r} before {current or 'the first one'}: nothing to roll back to"
            )
        former = promoted[-1].former
        event = _event(ROLLED_BACK, former, by, reason, current)
        return _replace(store, name, Champions(champion=former, history=(*champions.history, event)))


def find_champion(recipe: "Recipe", store: Store) -> Run | None:
    """The run that is the champion of this recipe's name; None if there is none yet.

    Raises:
        InputError: if its results are not in the store any more, or it was split in another way.
    """
    name = read_champions(store, recipe.name).champion
    if name is None:
        return None
    run = load_run(runs_folder(store) / name)
    if run.record["recipe"]["split"] != recipe.split.model_dump(mode="json"):
        raise InputError(
            f"the section split is not that of the champion {name}, so what was held out then may be trained on now: "
            "set it back, or give the recipe another name"
        )
    for stage in ("ingest", "split", "train_tokenizer", "train_model", "export_model"):
        run.stored(store, stage)
    return run


def champion_names(store: Store) -> list[str]:
    """Names of the recipes that have a champion."""
    return sorted(path.stem for path in champions_file(store, "any").parent.glob("*.json"))
