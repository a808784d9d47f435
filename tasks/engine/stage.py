"""Stages: a function becomes a node of the graph.

A stage is a function of its configuration and of finished results, that writes below `out`
and returns its figures. Outside the engine a call of a stage builds a `Node` and runs
nothing; `stage.fn(...)` is the plain function.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from model.base_config import Config
from model.imports import uncollected
from tasks.engine.code import code_digests
from tasks.engine.machine import Machine
from tasks.engine.sources import SourceDigests

Metrics = dict[str, Any]

Role = Literal["read", "deduplicate", "tokenize", "train", "export", "evaluate", ""]
"""What a stage does in its graph, where others ask for it: show it, go on from it, or share an accelerator with it."""

Fingerprint = Callable[[Any, SourceDigests], Any]
ListPieces = Callable[[Any, SourceDigests], "Pieces"]
Finish = Callable[..., Metrics]


@dataclass(frozen=True)
class Shard:
    """One shard of an input: a folder with files of constant names."""

    path: Path


@dataclass(frozen=True)
class Piece:
    """One piece of what lies outside the store: what it is, in JSON types, where it lies left out."""

    values: Any


@dataclass(frozen=True)
class Pieces:
    """What lies outside the store, for a map over it.

    Attributes:
        each: the pieces, in JSON types, in order; each is all that the key of its shards knows of the outside.
        source: what else is of importance, and a summary of all for people.
    """

    each: Sequence[Any]
    source: Any


@dataclass(frozen=True)
class Parts:
    """All that the shards of a map stage have become, for its last word.

    Attributes:
        folders: what each call of the function wrote, in order.
        metrics: their figures, summed.
        pieces: what they were made from, if that lies outside.
        out: folder of the whole; what is written below its figures/ changes no digest.
    """

    folders: tuple[Path, ...]
    metrics: Metrics
    pieces: tuple[Any, ...] | None
    out: Path


@dataclass(frozen=True)
class Artifact:
    """A whole input: the folder that its stage wrote, and its shards in order if it has any."""

    path: Path
    shards: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Stage:
    """What the engine knows of a stage; made by `stage` and `map_stage`.

    Attributes:
        config_type: class of the configuration; None for a stage with nothing to choose.
        optional_inputs: those of `artifact_inputs` that a node may lack.
        extras: which of out, work, machine and piece the function takes.
        whole_fields: fields of the configuration that are in no shard's key, since its piece has what it needs of them.
    """

    name: str
    fn: Callable[..., Any]
    config_type: type[Config] | None
    shard_inputs: tuple[str, ...]
    artifact_inputs: tuple[str, ...]
    optional_inputs: tuple[str, ...]
    extras: tuple[str, ...]
    libraries: tuple[str, ...]
    retries: int
    mapped: bool
    role: Role
    fingerprint: Fingerprint | None
    list_pieces: ListPieces | None
    several: bool
    whole_fields: tuple[str, ...]
    finish: Finish | None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs."""
        return self.shard_inputs + self.artifact_inputs

    @property
    def reference(self) -> str:
        """MODULE:FUNCTION, for a child process to find this stage again."""
        return f"{self.fn.__module__}:{self.fn.__name__}"

    def __call__(self, config: Config | None = None, /, **inputs: "Node") -> "Node":
        """A node of the graph; nothing runs."""
        if not isinstance(config, self.config_type or type(None)):
            wanted = self.config_type.__name__ if self.config_type else "no configuration"
            raise TypeError(f"{self.name} takes {wanted}, not a {type(config).__name__}")
        required = set(self.inputs) - set(self.optional_inputs)
        if not required <= set(inputs) <= set(self.inputs):
            raise TypeError(f"{self.name} takes the inputs {sorted(self.inputs)}, not {sorted(inputs)}")
        return Node(self, config, inputs)

    def code(self, config: Config | None) -> dict[str, str]:
        """Digest of each module whose code a result with this configuration depends on."""
        return code_digests(self.fn.__module__, *(config.modules if config else ()))

    def code_of_values(self, values: dict[str, Any] | None) -> dict[str, str]:
        """The same, of a configuration in JSON types."""
        return self.code(*self.read_config(values) or (None,))

    def read_config(self, values: dict[str, Any] | None) -> tuple[Config, ...]:
        """The configuration that `values` are, as the arguments of `fn` before its inputs."""
        return () if self.config_type is None else (self.config_type.model_validate(values),)


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

    @property
    def role(self) -> Role:
        """What the node does in this graph; a given result does nothing."""
        return self.stage.role if self.given is None else ""

    def named(self, label: str) -> "Node":
        """The same node under another name."""
        return replace(self, label=label)


def _is_finished() -> Metrics:
    raise TypeError("a finished result is taken as it is, never made")


def finished(stage_name: str, key: str, label: str) -> Node:
    """A node that stands for a finished result, whatever it was made from."""
    stage = Stage(
        stage_name, _is_finished, None, (), (), (), (), (), 0, False, "", None, None, False, (), None
    )
    return Node(stage, None, {}, label, key)


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


_EXTRAS = {"out": Path, "work": Path, "machine": Machine, "piece": Piece}


def _make(fn: Callable[..., Any], **options: Any) -> Stage:
    """Read from the signature of a function what it takes."""
    hints = get_type_hints(fn)
    shards, artifacts, optional, extras = [], [], [], []
    config_type: type[Config] | None = None
    for name, parameter in inspect.signature(fn).parameters.items():
        kind = hints.get(name)
        if name == "config" and isinstance(kind, type) and issubclass(kind, Config):
            config_type = kind
        elif kind is Shard:
            shards.append(name)
        elif kind is Artifact:
            artifacts.append(name)
        elif kind == Artifact | None and parameter.default is None:
            artifacts.append(name)
            optional.append(name)
        elif _EXTRAS.get(name) is kind and kind is not None:
            extras.append(name)
        else:
            raise TypeError(
                f"{fn.__name__}: the parameter {name} is none of config: Config, NAME: Shard, NAME: Artifact, "
                "NAME: Artifact | None = None, out: Path, work: Path, machine: Machine, piece: Piece"
            )
    if "out" not in extras:
        raise TypeError(f"{fn.__name__} lacks out: Path")
    if bool(shards or "piece" in extras) != options["mapped"]:
        raise TypeError(f"{fn.__name__}: Shard inputs or a piece, and @map_stage, go together")
    if ("piece" in extras) != bool(options["list_pieces"]) or (shards and "piece" in extras):
        raise TypeError(
            f"{fn.__name__}: a map over what lies outside takes piece: Piece, pieces=, and no Shard"
        )
    inputs = (tuple(shards), tuple(artifacts), tuple(optional))
    return Stage(fn.__name__, fn, config_type, *inputs, tuple(extras), **options)


def stage(
    *,
    libraries: Sequence[str] = (),
    retries: int = 1,
    role: Role = "",
    fingerprint: Fingerprint | None = None,
) -> Callable[[Callable[..., Metrics]], Stage]:
    """Make a stage of a function `(config, NAME: Artifact..., out: Path) -> Metrics`; it may lack `config`.

    Args:
        libraries: distributions whose versions are part of the key.
        retries: further attempts after a failure that another attempt may mend.
        role: what it does in its graph, where others ask for it.
        fingerprint: for a stage that reads from outside the store: what it reads, as JSON
            values that change when the content does, and only then.
    """
    options = {"libraries": tuple(libraries), "retries": retries, "role": role, "fingerprint": fingerprint}
    others = {"list_pieces": None, "several": False, "whole_fields": (), "finish": None}
    return lambda fn: _make(fn, **options, mapped=False, **others)


def map_stage(
    *,
    libraries: Sequence[str] = (),
    retries: int = 1,
    role: Role = "",
    pieces: ListPieces | None = None,
    whole_fields: Sequence[str] = (),
    several: bool = False,
    finish: Finish | None = None,
) -> Callable[[Callable[..., Any]], Stage]:
    """Make a stage of a function that is called for each shard, `(config, NAME: Shard..., out: Path)`.

    It returns metrics. Shard inputs are zipped by position; Artifact inputs go whole to every shard. A map over what
    lies outside the store takes `piece: Piece` instead of Shard inputs.

    Args:
        libraries: distributions whose versions are part of the key.
        retries: further attempts after a failure that another attempt may mend.
        role: what it does in its graph, where others ask for it.
        pieces: for a map over what lies outside: called with config and digests of files, lists the pieces of it.
        whole_fields: fields of the config that the key of a shard leaves out, since they are in its piece as far as
            they matter to it; they are in the key of the whole.
        several: each call writes shards/NNNNN/ below out, any number of them, which are the shards of the whole.
        finish: called with the config, if there is one, and the `Parts`; returns the figures of the whole, and
            raises InputError if it leaves nothing to go on with.
    """
    options = {"libraries": tuple(libraries), "retries": retries, "role": role, "several": several}
    outside = {"list_pieces": pieces, "whole_fields": tuple(whole_fields), "finish": finish}
    return lambda fn: _make(fn, **options, **outside, mapped=True, fingerprint=None)


def load_stage(reference: str) -> Stage:
    """The stage that MODULE:FUNCTION names."""
    module, name = reference.split(":")
    if module not in sys.modules:
        with uncollected():
            importlib.import_module(module)
    loaded = getattr(sys.modules[module], name)
    assert isinstance(loaded, Stage)
    return loaded
