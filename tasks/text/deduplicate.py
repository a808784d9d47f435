"""deduplicate: near-duplicates over all shards, the one of each that stays, and what must stay on one side of the split."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from model.base_config import Config
from tasks.engine.progress import progress
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.tables import Schema, read_table, write_arrays
from tasks.text.documents import DOCUMENTS, text_digest
from tasks.text.fields import field_of
from tasks.text.groups import CLUSTERS, CLUSTERS_SCHEMA, GROUPS, GROUPS_SCHEMA, LISTED, draw
from tasks.text.selection import SELECTION, SIDES, TRAIN, VALIDATION
from tasks.text.signatures import ALIKE, NEAR, SIGNED
from tasks.text.verdicts import VERDICTS, VERDICTS_SCHEMA, dropped, kept

_RANKS = (LISTED, VALIDATION, TRAIN, "")
"""Why the side of a document is decided already; the first of those in a cluster survives, or decides for a group."""


class SurvivorConfig(Config):
    """Which of several documents that are alike stays. If nothing is set, the one with the smallest hash."""

    prefer_sources: tuple[str, ...] = Field(
        (),
        description="Sources whose documents stay rather than those of others; of these the first rather than the next.",
    )
    prefer_field: str | None = Field(
        None,
        min_length=1,
        description="Field of the metadata, or a field of a field (a.b), by which one stays, such as date; bytes is the size of "
        "the text. A document that has it stays rather than one that lacks it.",
    )
    prefer: Literal["largest", "smallest"] = Field(
        "largest",
        description="Whether the largest or the smallest value of prefer_field stays; numbers are compared as numbers.",
    )


class DeduplicateConfig(SurvivorConfig):
    """The section of the recipe, and what signing and splitting say that matters here; filled in from theirs."""

    kept_ids: tuple[str, ...] = Field((), description="Documents that always stay: split.validation_ids.")
    kept_source: str | None = Field(
        None, description="Source whose documents always stay: split.validation_source."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the sides: split.seed.")


class _Signed:
    """What was signed, over all shards; only what is asked for is in memory.

    Attributes:
        bounds: number of the first document of each shard, and how many documents there are.
    """

    def __init__(self, config: DeduplicateConfig, shards: tuple[Path, ...], former: Artifact | None) -> None:
        import pyarrow as pa

        from tasks.text.likeness import first_numbers

        self.config, self.shards = config, shards
        self.kept_ids = pa.array(config.kept_ids, pa.string())
        firsts, n_documents = first_numbers(shards)
        self.bounds: list[int] = [*firsts.tolist(), n_documents]
        self.former = _former_sides(former)

    def ranks(self, table: Any) -> Any:
        """The place in `_RANKS` of each document of a table of what was signed: int8 (documents,).

        Of those that no recipe lists it is the side that their text had; else that of the text that they were before somebody
        changed it.
        """
        import numpy as np
        import pyarrow.compute as pc

        ranks = np.full(len(table), _RANKS.index(""), np.int8)
        of_texts, of_ids = self.former
        if any(map(len, of_ids.values())):
            ids = [text_digest(name) for name in table.column("id").to_pylist()]
            _set_sides(ranks, of_ids, np.array(ids, np.uint64))
        _set_sides(ranks, of_texts, table.column("text_digest").to_numpy())
        listed = pc.fill_null(pc.equal(table.column("source"), self.config.kept_source), False)
        if self.kept_ids:
            listed = pc.or_(listed, pc.is_in(table.column("id"), self.kept_ids))
        ranks[listed.to_numpy()] = _RANKS.index(LISTED)
        return ranks

    def numbers(self, shard: int) -> range:
        """The numbers of the documents of a shard."""
        return range(self.bounds[shard], self.bounds[shard + 1])

    def places(self, numbers: Any) -> Iterator[tuple[int, dict[int, int]]]:
        """The shards that hold the documents with these numbers, sorted, and the row of each in its shard."""
        import numpy as np

        bounds = np.searchsorted(numbers, self.bounds)
        for shard in np.flatnonzero(np.diff(bounds)).tolist():
            first = self.bounds[shard]
            own = numbers[bounds[shard] : bounds[shard + 1]].tolist()
            yield shard, {number: number - first for number in own}

    def at(self, numbers: Any) -> dict[int, dict[str, Any]]:
        """The documents with these numbers, sorted."""
        found: dict[int, dict[str, Any]] = {}
        for shard, places in self.places(numbers):
            table = read_table(self.shards[shard] / SIGNED).take(list(places.values()))
            rows = zip(places, table.to_pylist(), self.ranks(table).tolist(), strict=True)
            found.update((number, {**row, "rank": rank}) for number, row, rank in rows)
        return found


def _set_sides(ranks: Any, known: dict[str, Any], digests: Any) -> None:
    """Give those documents the rank of a side whose digest is a known one of it; of several sides the first."""
    import numpy as np

    for side, digests_of_side in reversed(known.items()):
        if len(digests_of_side):
            places = np.searchsorted(digests_of_side, digests).clip(max=len(digests_of_side) - 1)
            ranks[digests_of_side[places] == digests] = _RANKS.index(side)


def _former_sides(former: Artifact | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Digests of the texts on each side of an earlier selection, and of their ids: sorted, uint64."""
    import numpy as np

    texts: dict[str, list[Any]] = {side: [np.empty(0, np.uint64)] for side in SIDES}
    names: dict[str, list[Any]] = {side: [np.empty(0, np.uint64)] for side in SIDES}
    for shard in former.shards if former else ():
        table = read_table(shard / SELECTION, ["id", "side", "text_digest"])
        sides = np.array(table.column("side").to_pylist(), object)
        digests = np.array([text_digest(name) for name in table.column("id").to_pylist()], np.uint64)
        for side in SIDES:
            texts[side].append(table.column("text_digest").to_numpy()[sides == side])
            names[side].append(digests[sides == side])
    of_texts, of_names = (
        {side: np.sort(np.concatenate(parts)) for side, parts in found.items()} for found in (texts, names)
    )
    return of_texts, of_names


def _values(
    config: DeduplicateConfig, documents: Artifact | None, numbers: Any, signed: _Signed
) -> dict[int, Any]:
    """What the documents with these numbers, sorted, have in the field by which one of them stays."""
    if config.prefer_field is None:
        return {}
    assert documents is not None, "a graph with prefer_field gives the documents"
    column = "text" if config.prefer_field == "bytes" else "metadata"
    values: dict[int, Any] = {}
    for shard, places in signed.places(numbers):
        cells = read_table(documents.shards[shard] / DOCUMENTS, [column]).column(column)
        for number, row in places.items():
            cell = cells[row].as_py()
            values[number] = (
                len(cell.encode()) if column == "text" else field_of(json.loads(cell), config.prefer_field)
            )
    return values


def _in_order(
    config: DeduplicateConfig, cluster: list[int], documents: dict[int, Any], values: dict[int, Any]
) -> list[int]:
    """The documents of a cluster, the one that stays first: by sides of an earlier run, sources, field, and a hash."""
    ordered = sorted(cluster, key=lambda n: (documents[n]["digest"], documents[n]["id"]))
    having = [n for n in ordered if values.get(n) not in (None, "")]
    if having:
        are_numbers = all(isinstance(values[n], int | float) for n in having)
        having.sort(
            key=lambda n: values[n] if are_numbers else str(values[n]), reverse=config.prefer == "largest"
        )
        ordered = having + [n for n in ordered if values.get(n) in (None, "")]
    places = {source: place for place, source in enumerate(config.prefer_sources)}
    ordered.sort(key=lambda n: places.get(documents[n]["source"], len(places)))
    return sorted(ordered, key=lambda n: documents[n]["rank"])


_Clusters = list[list[int]]
"""The documents of each cluster, by number, the one that stays first."""


def _clusters_of(
    components: tuple[Any, Any], signed: _Signed, texts: Artifact | None
) -> tuple[_Clusters, dict[int, Any]]:
    """The clusters of near-duplicates, and what was signed of their documents."""
    numbers, labels = components
    documents = signed.at(numbers)
    members: dict[int, list[int]] = {}
    for number, label in zip(numbers.tolist(), labels.tolist(), strict=True):
        members.setdefault(label, []).append(number)
    values = _values(signed.config, texts, numbers, signed)
    return [_in_order(signed.config, cluster, documents, values) for cluster in members.values()], documents


def _verdicts_on(clusters: _Clusters, documents: dict[int, Any]) -> dict[int, dict[str, Any]]:
    """The verdicts that are not plainly to keep: on the documents of clusters, by number."""
    verdicts = {}
    for first, *rest in clusters:
        survivor = documents[first]
        others = [documents[number]["id"] for number in rest if documents[number]["rank"]]
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            verdicts[first] = kept(f"stands for {', '.join(others[:3])}{more}")
        for number in rest:
            if documents[number]["rank"]:
                is_equal = documents[number]["text_digest"] == survivor["text_digest"]
                reason = "the same text" if is_equal else "near-duplicate"
                what = "the same text as" if is_equal else "near-duplicate of"
                detail = f"{what} {survivor['id']}, in a cluster of {len(rest) + 1}"
                verdicts[number] = dropped("deduplicate", reason, detail)
    return verdicts


def _groups_of(groups: tuple[Any, Any], signed: _Signed, seed: int) -> dict[int, dict[str, Any]]:
    """draw and held of the documents that are alike another one, by number."""
    numbers, labels = (array.tolist() for array in groups)
    documents = signed.at(groups[0])
    draws: dict[int, int] = {}
    ranks: dict[int, int] = {}
    for number, label in zip(numbers, labels, strict=True):
        own = draw(seed, documents[number]["text_digest"])
        draws[label] = min(draws.get(label, own), own)
        # What is held out stays held out, whatever it turns out to be alike to.
        ranks[label] = min(ranks.get(label, len(_RANKS)), documents[number]["rank"])
    return {
        number: {"draw": draws[label], "held": _RANKS[ranks[label]]}
        for number, label in zip(numbers, labels, strict=True)
    }


def _columns(row: dict[str, Any], numbers: range) -> dict[str, list[Any]]:
    """Columns in which every row is this one."""
    return {name: [value] * len(numbers) for name, value in row.items()}


def _write(
    path: Path, columns: dict[str, Any], rows: dict[int, dict[str, Any]], numbers: range, schema: Schema
) -> None:
    """Write a table of the documents with these numbers.

    Args:
        columns: of the usual rows.
        rows: the others, by number, of all shards.
    """
    for number in rows.keys() & numbers:
        for name, value in rows[number].items():
            columns[name][number - numbers.start] = value
    write_arrays(path, columns, schema)


@stage(libraries=("numpy", "scipy", "pyarrow"), role="deduplicate")
def deduplicate(
    config: DeduplicateConfig,
    signatures: Artifact,
    pairs: Artifact,
    out: Path,
    former: Artifact | None = None,
    documents: Artifact | None = None,
) -> Metrics:
    """Write shards/NNNNN/verdicts.parquet, groups.parquet and clusters.parquet, aligned with the shards that were signed.

    Equal texts and near-duplicates are one cluster. Its survivor is what the recipe prefers, else the document with the
    smallest digest of id and text, so it does not depend on how shards are numbered; documents that the recipe lists
    as validation all survive, and what is near to one of them does not. What an earlier run kept comes before what is new, held-out text first,
    so that a new copy displaces none of it. Components are computed over pairs only, so memory follows the duplicates,
    not the documents.

    Args:
        pairs: result of find_duplicates.
        documents: what was signed, where a field of the metadata decides what stays.
        former: selection of an earlier run, whose sides its texts keep, also where somebody changed them since.
    """
    import numpy as np

    from tasks.text.equal_keys import components

    signed = _Signed(config, signatures.shards, former)
    n_shards = len(signatures.shards)
    near = components(np.load(part / NEAR) for part in pairs.shards)
    clusters, of_clusters = _clusters_of(near, signed, documents)
    verdicts = _verdicts_on(clusters, of_clusters)
    of_cluster = {
        number: {"cluster": of_clusters[cluster[0]]["id"], "cluster_size": len(cluster)}
        for cluster in clusters
        for number in cluster
    }
    alone = {"cluster": None, "cluster_size": 1}
    groups = _groups_of(components(np.load(part / ALIKE) for part in pairs.shards), signed, config.seed)
    for shard in range(n_shards):
        folder_of_shard, numbers = out / "shards" / f"{shard:05d}", signed.numbers(shard)
        table = read_table(signatures.shards[shard] / SIGNED, ["id", "source", "text_digest"])
        draws = [draw(config.seed, digest) for digest in table.column("text_digest").to_pylist()]
        held = [_RANKS[rank] for rank in signed.ranks(table).tolist()]
        usual = {"draw": np.array(draws, np.uint64), "held": held}
        _write(folder_of_shard / VERDICTS, _columns(kept(), numbers), verdicts, numbers, VERDICTS_SCHEMA)
        _write(folder_of_shard / GROUPS, usual, groups, numbers, GROUPS_SCHEMA)
        _write(folder_of_shard / CLUSTERS, _columns(alone, numbers), of_cluster, numbers, CLUSTERS_SCHEMA)
        progress(shard + 1, n_shards, "shards")
    gone = Counter(verdict["reason"] for verdict in verdicts.values() if not verdict["kept"])
    return {
        "documents": signed.bounds[-1],
        "clusters": len(clusters),
        "removed": sum(gone.values()),
        "same_text": gone["the same text"],
    }
