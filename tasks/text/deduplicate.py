"""deduplicate: near-duplicates over all shards, the one of each that stays, and what must stay on one side of the split."""

import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field

from model.base_config import Config
from tasks.engine.progress import progress
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.tables import read_table, write_table
from tasks.text.groups import GROUPS, GROUPS_SCHEMA, LISTED, draw
from tasks.text.selection import SELECTION, SIDES, TRAIN, VALIDATION
from tasks.text.signatures import SIGNED, MinhashConfig, datatrove_config, signature_file
from tasks.text.verdicts import VERDICTS, VERDICTS_SCHEMA, dropped, kept

_Rows = list[dict[str, Any]]
_RANKS = (LISTED, VALIDATION, TRAIN, "")
"""Why the side of a document is decided already; the first of those in a cluster survives, or decides for a group."""


class DeduplicateConfig(Config):
    """What signing and splitting say that matters here; filled in from their sections of the recipe."""

    minhash: MinhashConfig = Field(
        MinhashConfig(), description="Shape of the signatures, as in the section minhash."
    )
    kept_ids: tuple[str, ...] = Field((), description="Documents that always stay: split.validation_ids.")
    kept_source: str | None = Field(
        None, description="Source whose documents always stay: split.validation_source."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the sides: split.seed.")


def _clusters(config: MinhashConfig, signatures: Artifact, folder: Path) -> dict[int, list[tuple[int, int]]]:
    """Members (position, row) of each cluster of two and more, by datatrove's bucket and cluster steps."""
    import struct

    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster

    for position, shard in enumerate(signatures.shards):
        for bucket in range(config.buckets):
            link = folder / "signatures" / signature_file(bucket, position)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(shard / signature_file(bucket))
    shape = datatrove_config(config)
    for bucket in range(config.buckets):
        MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=shape).run(
            None, bucket, config.buckets
        )
        progress(bucket + 1, config.buckets, "buckets")
    MinhashDedupCluster(
        str(folder / "buckets"), str(folder / "clusters"), config=shape, save_cluster_id=True
    ).run(None, 0, 1)
    clusters: dict[int, list[tuple[int, int]]] = {}
    for path in sorted((folder / "clusters").glob("*.clusters")):
        for row, cluster in struct.iter_unpack("<2I", path.read_bytes()):
            clusters.setdefault(cluster, []).append((int(path.stem), row))
    return clusters


def _former_sides(former: Artifact | None) -> dict[int, str]:
    """Side of each text in an earlier selection, by its digest."""
    sides: dict[int, str] = {}
    for shard in former.shards if former else ():
        for row in read_table(shard / SELECTION, ["side", "text_digest"]).to_pylist():
            if row["side"] in SIDES:
                sides[row["text_digest"]] = row["side"]
    return sides


def _signatures(config: MinhashConfig, signatures: Artifact, sizes: list[int]) -> tuple[Any, Any]:
    """Every signature, (documents, hashes), and which documents have one: their number over all shards."""
    import numpy as np

    hashes, numbers = [], []
    for shard, first in zip(signatures.shards, np.cumsum([0, *sizes[:-1]]), strict=True):
        columns = []
        for bucket in range(config.buckets):
            record = np.fromfile(shard / signature_file(bucket), "<u4").reshape(
                -1, config.hashes_per_bucket + 1
            )
            record = record[np.argsort(record[:, -1], kind="stable")]
            columns.append(record[:, :-1])
        hashes.append(np.hstack(columns))
        numbers.append(first + record[:, -1].astype(np.int64))
    return np.concatenate(hashes), np.concatenate(numbers)


def _groups(config: DeduplicateConfig, signatures: Artifact, signed: list[_Rows]) -> list[dict[str, Any]]:
    """draw and held of every document over all shards.

    Args:
        signed: what was signed, shard by shard, with the rank of each document.
    """
    import numpy as np

    from tasks.text.likeness import alike

    documents = [row for rows in signed for row in rows]
    groups = np.arange(len(documents))
    if documents:
        hashes, numbers = _signatures(config.minhash, signatures, [len(rows) for rows in signed])
        # By digest, so that groups do not depend on how shards are numbered.
        digests = np.array([documents[number]["digest"] for number in numbers], np.uint64)
        order = np.argsort(digests, kind="stable")
        found = alike(hashes[order], config.minhash.hashes_per_bucket)
        firsts = np.full(found.max(initial=-1) + 1, len(documents))
        np.minimum.at(firsts, found, numbers[order])
        groups[numbers[order]] = firsts[found]
    draws: dict[int, int] = {}
    ranks: dict[int, int] = {}
    for group, row in zip(groups.tolist(), documents, strict=True):
        own = draw(config.seed, row["text_digest"])
        draws[group] = min(draws.get(group, own), own)
        # What is held out stays held out, whatever it turns out to be alike to.
        ranks[group] = min(ranks.get(group, row["rank"]), row["rank"])
    return [{"draw": draws[group], "held": _RANKS[ranks[group]]} for group in groups.tolist()]


def _signed(config: DeduplicateConfig, signatures: Artifact, former: Artifact | None) -> list[_Rows]:
    """What was signed, shard by shard, each document with its rank among those that it is alike to."""
    kept_ids, sides = set(config.kept_ids), _former_sides(former)
    signed = [read_table(shard / SIGNED).to_pylist() for shard in signatures.shards]
    for rows in signed:
        for row in rows:
            listed = row["id"] in kept_ids or row["source"] == config.kept_source
            row["rank"] = _RANKS.index(LISTED if listed else sides.get(row["text_digest"], ""))
    return signed


@stage(libraries=("datatrove", "numpy", "scipy", "pyarrow"), role="deduplicate")
def deduplicate(
    config: DeduplicateConfig, signatures: Artifact, out: Path, former: Artifact | None = None
) -> Metrics:
    """Write shards/NNNNN/verdicts.parquet and groups.parquet, aligned with the shards that were signed.

    The survivor of a cluster is the document with the smallest digest of id and text, so it
    does not depend on how shards are numbered; documents that the recipe lists as validation
    all survive, and what is near to one of them does not. What an earlier run kept comes before
    what is new, held-out text first, so that a new copy displaces none of it.

    Args:
        former: selection of an earlier run, whose sides its texts keep.
    """
    signed = _signed(config, signatures, former)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        clusters = _clusters(config.minhash, signatures, Path(folder))
    verdicts = [[kept() for _ in rows] for rows in signed]
    removed = 0
    for members in clusters.values():
        known = []
        for position, row in members:
            document = signed[position][row]
            known.append((document["rank"], document["digest"], document["id"], position, row))
        known.sort()
        survivor = known[0][2]
        others = [identifier for rank, _, identifier, _, _ in known[1:] if rank]
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            verdicts[known[0][3]][known[0][4]]["detail"] = f"stands for {', '.join(others[:3])}{more}"
        for rank, _, _, position, row in known[1:]:
            if rank:
                detail = f"near-duplicate of {survivor}, in a cluster of {len(known)}"
                verdicts[position][row] = dropped("deduplicate", "near-duplicate", detail)
                removed += 1
    groups = _groups(config, signatures, signed)
    first = 0
    for position, rows in enumerate(verdicts):
        folder_of_shard = out / "shards" / f"{position:05d}"
        write_table(folder_of_shard / VERDICTS, rows, VERDICTS_SCHEMA)
        write_table(folder_of_shard / GROUPS, groups[first : first + len(rows)], GROUPS_SCHEMA)
        first += len(rows)
    return {"documents": sum(len(rows) for rows in verdicts), "clusters": len(clusters), "removed": removed}
