"""count_lines: in how many documents of a shard each line is."""

from collections import Counter
from pathlib import Path

from pydantic import Field

from model.base_config import Config
from tasks.engine.stage import Metrics, Shard, map_stage
from tasks.tables import read_table, write_table
from tasks.text.documents import DOCUMENTS, text_digest


class CountLinesConfig(Config):
    """Which lines count."""

    min_characters: int = Field(
        ge=1, description="Shortest line that counts: clean.repeated_lines.min_characters, filled in."
    )


_MOST_EXAMPLES, _MOST_CHARACTERS = 100, 200


@map_stage(libraries=("numpy", "pyarrow", "xxhash"))
def count_lines(config: CountLinesConfig, documents: Shard, out: Path) -> Metrics:
    """Write lines.npy (hash and number of documents of each line) and examples.parquet (the commonest, for a person).

    A text that occurs several times in a shard counts once, so that copies of a document make no boilerplate of it.
    """
    import numpy as np

    from tasks.text.lines import COUNTS, EXAMPLES, EXAMPLES_SCHEMA, hash_line, lines_of

    seen: set[int] = set()
    counts: Counter[int] = Counter()
    named: dict[int, str] = {}
    texts = read_table(documents.path / DOCUMENTS, ["text"]).column("text").to_pylist()
    for text in texts:
        digest = text_digest(text)
        if digest in seen:
            continue
        seen.add(digest)
        own = {hash_line(line): line for line in lines_of(text, config.min_characters)}
        counts.update(own.keys())
        named.update((key, line.strip()[:_MOST_CHARACTERS]) for key, line in own.items() if counts[key] == 2)
    hashes = np.array(sorted(counts), np.uint64)
    numbers = np.array([counts[key] for key in hashes.tolist()], np.uint64)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / COUNTS, np.stack((hashes, numbers)))
    common = sorted(named, key=lambda key: (-counts[key], key))[:_MOST_EXAMPLES]
    rows = [{"hash": key, "line": named[key], "documents": counts[key]} for key in common]
    write_table(out / EXAMPLES, rows, EXAMPLES_SCHEMA)
    return {"documents": len(texts), "lines": len(hashes)}
