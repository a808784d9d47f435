"""What a build needs to know, on its way to the process that does it."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tasks.engine.machine import Machine
from tasks.engine.manifest import FORMAT_VERSION
from tasks.engine.stage import Artifact
from tasks.engine.store import Store


class Input(BaseModel):
    """A finished result that a build reads."""

    model_config = ConfigDict(extra="forbid")
    path: Path
    shards: tuple[Path, ...] = ()

    def artifact(self) -> Artifact:
        """The whole of it."""
        return Artifact(self.path, self.shards)

    def check(self, store: Store) -> None:
        """Compare all of it with its manifests, byte by byte.

        Raises:
            StageFailed: if anything differs; the result is set aside.
        """
        # The shards of a map stage are results of their own; those of other stages lie in the folder.
        apart = [shard for shard in self.shards if not shard.is_relative_to(self.path)]
        for folder in (self.path, *apart):
            store.check_input(folder)


class Spec(BaseModel):
    """One build.

    Attributes:
        stage: MODULE:FUNCTION.
        pieces: what each shard is made from, if that lies outside the store.
        folder: that paths which are not absolute count from.
        first_shards: build this many of the missing shards and publish no whole; all if None.
        only_shard: build the shard at this position, and publish no whole.
        force: build what is there already.
    """

    model_config = ConfigDict(extra="forbid")
    store: Path
    stage: str
    config: dict[str, Any] | None
    key: str
    ingredients: dict[str, Any]
    inputs: dict[str, Input]
    shard_keys: tuple[str, ...] | None
    pieces: tuple[Any, ...] | None = None
    machine: Machine
    format_version: int = FORMAT_VERSION
    folder: Path = Field(default_factory=Path.cwd)
    first_shards: int | None = None
    only_shard: int | None = None
    force: bool = False
