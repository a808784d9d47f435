"""deduplicate: clusters of near-duplicates over all shards, and the one document of each that stays."""

import tempfile
from pathlib import Path

from pydantic import Field

from model.base_config import Config
from tasks.engine.progress import progress
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.tables import read_table, write_table
from tasks.text.signatures import SIGNED, MinhashConfig, datatrove_config, signature_file
from tasks.text.verdicts import VERDICTS, VERDICTS_SCHEMA, dropped, kept


class DeduplicateConfig(Config):
    """What signing and splitting say that matters here; filled in from their sections of the recipe."""

    minhash: MinhashConfig = Field(
        MinhashConfig(), description="Shape of the signatures, as in the section minhash."
    )
    kept_ids: tuple[str, ...] = Field((), description="Documents that always stay: split.validation_ids.")
    kept_source: str | None = Field(
        None, description="Source whose documents always stay: split.validation_source."
    )


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


@stage(libraries=("datatrove", "pyarrow"), role="deduplicate")
def deduplicate(config: DeduplicateConfig, signatures: Artifact, out: Path) -> Metrics:
    """Write shards/NNNNN/verdicts.parquet, aligned with the shards that were signed.

    The survivor of a cluster is the document with the smallest digest of id and text, so it
    does not depend on how shards are numbered; documents that the recipe lists as validation
    all survive, and what is near to one of them does not.
    """
    digests = [read_table(shard / SIGNED) for shard in signatures.shards]
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        clusters = _clusters(config.minhash, signatures, Path(folder))
    verdicts = [[kept() for _ in range(table.num_rows)] for table in digests]
    kept_ids = set(config.kept_ids)
    removed = 0
    for members in clusters.values():
        known = []
        for position, row in members:
            identifier, source, digest = (
                digests[position].column(name)[row].as_py() for name in ("id", "source", "digest")
            )
            listed = identifier in kept_ids or source == config.kept_source
            known.append((not listed, digest, identifier, position, row))
        known.sort()
        survivor = known[0][2]
        others = [identifier for unlisted, _, identifier, _, _ in known[1:] if unlisted]
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            verdicts[known[0][3]][known[0][4]]["detail"] = f"stands for {', '.join(others[:3])}{more}"
        for unlisted, _, _, position, row in known[1:]:
            if unlisted:
                detail = f"near-duplicate of {survivor}, in a cluster of {len(known)}"
                verdicts[position][row] = dropped("deduplicate", "near-duplicate", detail)
                removed += 1
    for position, rows in enumerate(verdicts):
        write_table(out / "shards" / f"{position:05d}" / VERDICTS, rows, VERDICTS_SCHEMA)
    return {"documents": sum(len(rows) for rows in verdicts), "clusters": len(clusters), "removed": removed}
