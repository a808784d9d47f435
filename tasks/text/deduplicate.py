"""deduplicate: near-duplicates over all shards, the one of each that stays, and what must stay on one side of the split."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from model.base_config import Config
from tasks.engine.progress import progress
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.tables import Schema, arrow_schema, read_table, write_arrays
from tasks.text.documents import DOCUMENTS, text_digest
from tasks.text.fields import field_of
from tasks.text.groups import CLUSTERS, CLUSTERS_SCHEMA, GROUPS, GROUPS_SCHEMA, LISTED, draw
from tasks.text.selection import SELECTION, SIDES, TRAIN, VALIDATION
from tasks.text.signatures import AGAIN, ALIKE, COPIES, NEAR, SIGNED, SIGNED_SCHEMA
from tasks.text.sorted_arrays import are_among
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

    def places(self, numbers: Any) -> Iterator[tuple[int, Any]]:
        """The shards that hold the documents with these numbers, sorted, and the rows of these in each."""
        import numpy as np

        bounds = np.searchsorted(numbers, self.bounds)
        for shard in np.flatnonzero(np.diff(bounds)).tolist():
            yield shard, numbers[bounds[shard] : bounds[shard + 1]] - self.bounds[shard]

    def at(self, numbers: Any) -> Any:
        """The documents with these numbers, sorted: a table of what was signed, and the rank of each."""
        import pyarrow as pa

        schema = arrow_schema(SIGNED_SCHEMA).append(pa.field("rank", pa.int8()))
        found = [schema.empty_table()]
        for shard, rows in self.places(numbers):
            table = read_table(self.shards[shard] / SIGNED).take(rows)
            found.append(table.append_column("rank", pa.array(self.ranks(table))))
        return pa.concat_tables(found)


def _set_sides(ranks: Any, known: dict[str, Any], digests: Any) -> None:
    """Give those documents the rank of a side whose digest is a known one of it; of several sides the first."""

    for side, digests_of_side in reversed(known.items()):
        ranks[are_among(digests, digests_of_side)] = _RANKS.index(side)


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


def _values(documents: Artifact, field: str, signed: _Signed, numbers: Any) -> list[Any]:
    """What the documents with these numbers, sorted, have in the field by which one of them stays."""
    column = "text" if field == "bytes" else "metadata"
    values = []
    for shard, rows in signed.places(numbers):
        for cell in read_table(documents.shards[shard] / DOCUMENTS, [column]).column(column).take(rows):
            told = cell.as_py()
            values.append(len(told.encode()) if column == "text" else field_of(json.loads(told), field))
    return values


def _by_value(places: list[int], values: list[Any], config: SurvivorConfig) -> list[int]:
    """Documents of a cluster, those first that have a value, as the recipe prefers them; else in the order in which they are."""
    having = [place for place in places if values[place] not in (None, "")]
    are_numbers = all(isinstance(values[place], int | float) for place in having)
    having.sort(
        key=lambda place: values[place] if are_numbers else str(values[place]),
        reverse=config.prefer == "largest",
    )
    return having + [place for place in places if values[place] in (None, "")]


def _joined(equal: Any, is_again: Any, pairs: Artifact, kind: str) -> tuple[Any, Any]:
    """Components over pairs of a kind and over copies: numbers of documents, sorted, and the label of each.

    Args:
        equal: copies, of which those that `is_again` says were compared by no signature of their own.
    """
    import numpy as np

    from tasks.text.equal_keys import components, with_copies

    parts = (np.load(part / kind) for part in pairs.shards)
    return with_copies(*components(chain([equal[~is_again]], parts)), equal[is_again])


class _Clusters:
    """The documents that have near-duplicates, in arrays: sorted by number, and cluster by cluster.

    Attributes:
        numbers: of the documents, sorted; `documents` is a table of what was signed of them.
        order: their places in `numbers`, cluster by cluster, in each the one that stays first.
        begins, ends: where the cluster of each is in `order`.
    """

    def __init__(self, found: tuple[Any, Any], signed: _Signed, texts: Artifact | None) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        self.numbers, labels = found
        config, self.documents = signed.config, signed.at(self.numbers)
        self.ranks = self.documents.column("rank").to_numpy()
        self.digests = self.documents.column("text_digest").to_numpy()
        order = np.lexsort((self.documents.column("digest").to_numpy(), labels))
        bounds = np.flatnonzero(np.diff(labels[order], prepend=-1, append=-1))
        if config.prefer_field:
            assert texts is not None, "a graph with prefer_field gives the documents"
            values = _values(texts, config.prefer_field, signed, self.numbers)
            for begin, end in pairwise(bounds.tolist()):
                order[begin:end] = _by_value(order[begin:end].tolist(), values, config)
        listed = pa.array(config.prefer_sources, pa.string())
        sources = pc.index_in(self.documents.column("source"), listed)
        sources = pc.fill_null(sources, len(listed)).to_numpy()
        self.order = order[np.lexsort((sources[order], self.ranks[order], labels[order]))]
        self.n_clusters = max(0, len(bounds) - 1)
        self.begins, self.ends = np.empty_like(order), np.empty_like(order)
        sizes = np.diff(bounds)
        self.begins[self.order] = np.repeat(bounds[:-1], sizes)
        self.ends[self.order] = np.repeat(bounds[1:], sizes)

    def _id(self, place: int) -> str:
        return self.documents.column("id")[place].as_py()

    def _verdict(self, place: int, survivor: int) -> dict[str, Any] | None:
        """The verdict on a document, if it is not plainly to keep."""
        begin, end = int(self.begins[place]), int(self.ends[place])
        if place != survivor:
            if self.ranks[place] == 0:
                return None
            is_equal = self.digests[place] == self.digests[survivor]
            reason, what = (
                ("the same text", "the same text as") if is_equal else ("near-duplicate", "near-duplicate of")
            )
            detail = f"{what} {self._id(survivor)}, in a cluster of {end - begin}"
            return dropped("deduplicate", reason, detail)
        # Those that the recipe lists come first in a cluster, and stay.
        begin += 1
        while begin < end and self.ranks[self.order[begin]] == 0:
            begin += 1
        if begin == end:
            return None
        more = f" and {end - begin - 3} more" if end - begin > 3 else ""
        others = ", ".join(map(self._id, self.order[begin : min(end, begin + 3)].tolist()))
        return kept(f"stands for {others}{more}")

    def rows(self, numbers: range) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
        """Verdicts that are not plainly to keep, and clusters, of the documents with these numbers."""
        import numpy as np

        verdicts, clusters = {}, {}
        first, last = np.searchsorted(self.numbers, [numbers.start, numbers.stop]).tolist()
        for place, number in zip(range(first, last), self.numbers[first:last].tolist(), strict=True):
            survivor = int(self.order[self.begins[place]])
            size = int(self.ends[place] - self.begins[place])
            clusters[number] = {"cluster": self._id(survivor), "cluster_size": size}
            verdict = self._verdict(place, survivor)
            if verdict:
                verdicts[number] = verdict
        return verdicts, clusters


class _Groups:
    """The documents that are alike another one, sorted by number, and draw and rank of the group of each, in arrays."""

    def __init__(self, found: tuple[Any, Any], signed: _Signed) -> None:
        import numpy as np

        self.numbers, labels = found
        documents, n_groups = signed.at(self.numbers), int(labels.max(initial=-1)) + 1
        digests = documents.column("text_digest").to_numpy()
        draws = np.fromiter(
            (draw(signed.config.seed, int(digest)) for digest in digests), np.uint64, len(digests)
        )
        least_draws = np.full(n_groups, np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(least_draws, labels, draws)
        # What is held out stays held out, whatever it turns out to be alike to.
        first_ranks = np.full(n_groups, len(_RANKS) - 1, np.int8)
        np.minimum.at(first_ranks, labels, documents.column("rank").to_numpy())
        self.draws, self.ranks = least_draws[labels], first_ranks[labels]

    def set(self, draws: Any, ranks: Any, numbers: range) -> None:
        """Give the documents with these numbers that are in a group its draw and rank."""
        import numpy as np

        first, last = np.searchsorted(self.numbers, [numbers.start, numbers.stop])
        rows = self.numbers[first:last] - numbers.start
        draws[rows], ranks[rows] = self.draws[first:last], self.ranks[first:last]


def _write(
    path: Path, usual: dict[str, Any], rows: dict[int, dict[str, Any]], numbers: range, schema: Schema
) -> None:
    """Write a table of the documents with these numbers: the usual row, but where another one is given for a number."""
    columns = {name: [value] * len(numbers) for name, value in usual.items()}
    for number, row in rows.items():
        for name, value in row.items():
            columns[name][number - numbers.start] = value
    write_arrays(path, columns, schema)


@stage(libraries=("numpy", "scipy", "pyarrow"), role="deduplicate")
def deduplicate(
    config: DeduplicateConfig,
    signatures: Artifact,
    copies: Artifact,
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
        copies: result of find_copies.
        pairs: result of find_duplicates.
        documents: what was signed, where a field of the metadata decides what stays.
        former: selection of an earlier run, whose sides its texts keep, also where somebody changed them since.
    """
    import numpy as np

    signed = _Signed(config, signatures.shards, former)
    equal = np.load(copies.path / COPIES)
    is_again = are_among(equal[:, 1], np.load(copies.path / AGAIN))
    clusters = _Clusters(_joined(equal, is_again, pairs, NEAR), signed, documents)
    groups = _Groups(_joined(equal, is_again, pairs, ALIKE), signed)
    gone: Counter[str] = Counter()
    for shard, folder in enumerate(signatures.shards):
        folder_of_shard, numbers = out / "shards" / f"{shard:05d}", signed.numbers(shard)
        verdicts, of_cluster = clusters.rows(numbers)
        gone.update(verdict["reason"] for verdict in verdicts.values() if not verdict["kept"])
        _write(folder_of_shard / VERDICTS, kept(), verdicts, numbers, VERDICTS_SCHEMA)
        alone = {"cluster": None, "cluster_size": 1}
        _write(folder_of_shard / CLUSTERS, alone, of_cluster, numbers, CLUSTERS_SCHEMA)
        table = read_table(folder / SIGNED, ["id", "source", "text_digest"])
        digests, ranks = table.column("text_digest").to_pylist(), signed.ranks(table)
        draws = np.array([draw(config.seed, digest) for digest in digests], np.uint64)
        groups.set(draws, ranks, numbers)
        held = [_RANKS[rank] for rank in ranks.tolist()]
        write_arrays(folder_of_shard / GROUPS, {"draw": draws, "held": held}, GROUPS_SCHEMA)
        progress(shard + 1, len(signatures.shards), "shards")
    return {
        "documents": signed.bounds[-1],
        "clusters": clusters.n_clusters,
        "removed": gone.total(),
        "same_text": gone["the same text"],
    }
