"""Stages: a function becomes a node of the graph.

A stage is a function of its configuration and of finished results, that writes below `out`
and returns its figures. Outside the engine a call of a stage builds a `Node` and runs
nothing; `stage.fn(...)` is the plain function.
"""

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from model.base_config import Config
from tasks.errors import InputError
from tasks.machine import Machine
from tasks.store.code import code_digests
from tasks.store.keys import canonical, digest
from tasks.store.manifest import FORMAT_VERSION
from tasks.store.sources import SourceDigests
from tasks.store.store import Stored

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """One shard of an input: a folder with files of constant names."""

    path: Path


@dataclass(frozen=True)
class Artifact:
    """A whole input: the folder that its stage wrote, and its shards in order if it has any."""

    path: Path
    shards: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Stage:
    """What the engine knows of a stage; made by `stage` and `map_stage`."""

    name: str
    fn: Callable[..., Any]
    config_type: type[Config]
    shard_inputs: tuple[str, ...]
    artifact_inputs: tuple[str, ...]
    extras: tuple[str, ...]
    libraries: tuple[str, ...]
    retries: int
    mapped: bool
    fingerprint: Callable[[Any, SourceDigests], Any] | None
    check: Callable[[Any, Metrics], None] | None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs."""
        return self.shard_inputs + self.artifact_inputs

    @property
    def reference(self) -> str:
        """MODULE:FUNCTION, for a child process to find this stage again."""
        return f"{self.fn.__module__}:{self.fn.__name__}"

    def __call__(self, config: Config, **inputs: "Node") -> "Node":
        """A node of the graph; nothing runs."""
        if not isinstance(config, self.config_type):
            raise TypeError(f"{self.name} takes a {self.config_type.__name__}, not a {type(config).__name__}")
        if set(inputs) != set(self.inputs):
            raise TypeError(f"{self.name} takes the inputs {sorted(self.inputs)}, not {sorted(inputs)}")
        return Node(self, config, inputs)

    def result(self, key: str, label: str) -> "Node":
        """A node that stands for a finished result of this stage, whatever it was made from."""
        return Node(self, None, {}, label, key)


@dataclass(frozen=True, eq=False)
class Node:
    """A stage with its configuration and the nodes that it reads.

    Attributes:
        label: name in a graph in which the stage occurs more than once.
        given: key of a finished result that is taken as it is; such a node has no inputs.
    """

    stage: Stage
    config: Config | None
    inputs: dict[str, "Node"]
    label: str = ""
    given: str | None = None

    @property
    def name(self) -> str:
        """Name in the graph."""
        return self.label or self.stage.name

    def named(self, label: str) -> "Node":
        """The same node under another name."""
        return replace(self, label=label)


def topological(nodes: Iterable[Node]) -> list[Node]:
    """`nodes` and everything that they read, each after its inputs; deterministic."""
    order: list[Node] = []

    def visit(node: Node) -> None:
        if node not in order:
            for name in sorted(node.inputs):
                visit(node.inputs[name])
            order.append(node)

    for node in nodes:
        visit(node)
    return order


_EXTRAS = {"out": Path, "work": Path, "machine": Machine}


def _build(fn: Callable[..., Any], **options: Any) -> Stage:
    hints = get_type_hints(fn)
    shards, artifacts, extras = [], [], []
    config_type: type[Config] | None = None
    for name in inspect.signature(fn).parameters:
        kind = hints.get(name)
        if name == "config" and isinstance(kind, type) and issubclass(kind, Config):
            config_type = kind
        elif kind is Shard:
            shards.append(name)
        elif kind is Artifact:
            artifacts.append(name)
        elif _EXTRAS.get(name) is kind and kind is not None:
            extras.append(name)
        else:
            raise TypeError(
                f"{fn.__name__}: the parameter {name} is none of config: Config, NAME: Shard, NAME: Artifact, "
                "out: Path, work: Path, machine: Machine"
            )
    if config_type is None or "out" not in extras:
        raise TypeError(f"{fn.__name__} lacks config: Config or out: Path")
    if bool(shards) != options["mapped"]:
        raise TypeError(f"{fn.__name__}: Shard inputs and @map_stage go together")
    return Stage(fn.__name__, fn, config_type, tuple(shards), tuple(artifacts), tuple(extras), **options)


def stage(
    *,
    libraries: Sequence[str] = (),
    retries: int = 1,
    fingerprint: Callable[[Any, SourceDigests], Any] | None = None,
) -> Callable[[Callable[..., Metrics]], Stage]:
    """Make a stage of a function `(config, NAME: Artifact..., out: Path) -> Metrics`.

    Args:
        libraries: distributions whose versions are part of the key.
        retries: further attempts after a failure that another attempt may mend.
        fingerprint: for a stage that reads from outside the store: what it reads, as JSON
            values that change when the content does, and only then.
    """
    return lambda fn: _build(fn, libraries=tuple(libraries), retries=retries, mapped=False, fingerprint=fingerprint, check=None)


def map_stage(
    *,
    libraries: Sequence[str] = (),
    retries: int = 1,
    check: Callable[[Any, Metrics], None] | None = None,
) -> Callable[[Callable[..., Any]], Stage]:
    """Make a stage of a function that is called for each shard, `(config, NAME: Shard..., out: Path)`.

    It returns metrics, or a list of datatrove steps to run. Shard inputs are zipped by
    position; Artifact inputs go whole to every shard.

    Args:
        libraries: distributions whose versions are part of the key.
        retries: further attempts after a failure that another attempt may mend.
        check: called with the config and the summed metrics of all shards; raises InputError
            if they leave nothing to go on with.
    """
    return lambda fn: _build(fn, libraries=tuple(libraries), retries=retries, mapped=True, fingerprint=None, check=check)


def load_stage(reference: str) -> Stage:
    """The stage that MODULE:FUNCTION names."""
    module, name = reference.split(":")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, Stage)
    return found


@cache
def library_version(distribution: str) -> str:
    """Installed version of a distribution.

    Raises:
        InputError: if it is not installed.
    """
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"the package {distribution} is not installed: pip install {distribution}") from None


@dataclass(frozen=True)
class Known:
    """What is known of an input before or after it is built: None where it is not yet."""

    digest: str | None
    shards: tuple[str | None, ...] | None

    @classmethod
    def of(cls, stored: Stored) -> "Known":
        """Everything, since it is built."""
        return cls(stored.manifest.digest, tuple(stored.manifest.shard_digests()))


UNKNOWN = Known(None, None)


@dataclass(frozen=True)
class Resolved:
    """What a stage would be built from: its ingredients, and the keys that follow from them where all is known."""

    ingredients: dict[str, Any]
    key: str | None
    shard_keys: tuple[str | None, ...] | None


def resolve(node: Node, inputs: dict[str, Known], sources: SourceDigests) -> Resolved:
    """Ingredients and keys of a node on these inputs.

    Raises:
        InputError: if Shard inputs have different numbers of shards, or a source cannot be read.
        KeyMaterialError: if the configuration has no canonical form.
    """
    stage, config = node.stage, node.config
    assert config is not None, "a given result has its key already"
    common: dict[str, Any] = {
        "stage": stage.name,
        "config": canonical(config, stage.name),
        "code": code_digests(stage.fn.__module__),
        "libraries": {name: library_version(name) for name in stage.libraries},
    }
    if stage.fingerprint:
        common["source"] = canonical(stage.fingerprint(config, sources), f"{stage.name}.source")
    ingredients = {**common, "inputs": {name: known.digest for name, known in inputs.items()}}
    if not stage.mapped:
        complete = all(known.digest for known in inputs.values())
        key = digest({"format": FORMAT_VERSION, "kind": "artifact", **ingredients}) if complete else None
        return Resolved(ingredients, key, None)

    columns = {name: inputs[name].shards for name in stage.shard_inputs}
    wholes = {name: inputs[name].digest for name in stage.artifact_inputs}
    lengths = {len(column) for column in columns.values() if column is not None}
    if len(lengths) > 1:
        counts = ", ".join(f"{name} {len(column or ())}" for name, column in columns.items())
        raise InputError(f"{stage.name}: its inputs have different numbers of shards ({counts})")
    if not lengths:
        return Resolved(ingredients, None, None)
    shard_keys: list[str | None] = []
    for position in range(lengths.pop()):
        own = {name: column[position] if column else None for name, column in columns.items()}
        if None in own.values() or None in wholes.values():
            shard_keys.append(None)
        else:
            shard_keys.append(digest({"format": FORMAT_VERSION, "kind": "shard", **common, "inputs": {**own, **wholes}}))
    key = None
    if None not in shard_keys and all(known.digest for known in inputs.values()):
        key = digest({"format": FORMAT_VERSION, "kind": "map", "stage": stage.name, "shards": shard_keys})
    return Resolved(ingredients, key, tuple(shard_keys))
