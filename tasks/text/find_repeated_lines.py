"""find_repeated_lines: the lines that are in too many documents of all shards together."""

from collections import Counter
from pathlib import Path

from pydantic import Field

from model.base_config import Config
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.tables import read_table, write_json_lines


class FindRepeatedLinesConfig(Config):
    """From when on a line is repeated."""

    min_documents: int = Field(
        ge=2, description="Documents that must have a line: clean.repeated_lines.min_documents, filled in."
    )


_MOST_SAMPLES = 100


@stage(libraries=("numpy", "pyarrow", "xxhash"))
def find_repeated_lines(config: FindRepeatedLinesConfig, lines: Artifact, out: Path) -> Metrics:
    """Write repeated.npy (their hashes, sorted), and figures/lines.jsonl with the commonest of them."""
    import numpy as np

    from tasks.text.lines import EXAMPLES, REPEATED, repeated_hashes

    hashes = repeated_hashes(lines.shards, config.min_documents)
    np.save(out / REPEATED, hashes)
    known = set(hashes.tolist())
    counts: Counter[int] = Counter()
    named: dict[int, str] = {}
    for shard in lines.shards:
        for row in read_table(shard / EXAMPLES).to_pylist():
            if row["hash"] in known:
                counts[row["hash"]] += row["documents"]
                named[row["hash"]] = row["line"]
    common = sorted(counts, key=lambda key: (-counts[key], key))[:_MOST_SAMPLES]
    write_json_lines(
        out / "figures" / "lines.jsonl",
        [{"line": named[key], "documents_at_least": counts[key]} for key in common],
    )
    return {"lines": len(hashes)}
