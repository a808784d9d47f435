"""decontaminate: which documents contain a benchmark item."""

from itertools import chain
from pathlib import Path
from typing import Any

from tasks.benchmarks.index import INDEX
from tasks.benchmarks.search import load_index, matches_of_each
from tasks.engine.stage import Artifact, Metrics, Shard, map_stage
from tasks.tables import read_batches, write_table
from tasks.text.documents import DOCUMENTS
from tasks.text.verdicts import VERDICTS, VERDICTS_SCHEMA, dropped, kept


@map_stage(libraries=("numpy", "pyarrow"))
def decontaminate(documents: Shard, index: Artifact, out: Path) -> Metrics:
    """Write verdicts.parquet, row by row: a document that contains a benchmark item is not kept.

    One n-gram of an item is enough, and index_benchmarks says how long it is.
    """
    from tasks.characters import MOST_CHARACTERS
    from tasks.ngrams import hash_words

    loaded = load_index(index.path / INDEX)
    verdicts: list[dict[str, Any]] = []
    by_task: dict[str, int] = {}
    batches = read_batches(documents.path / DOCUMENTS, "text", MOST_CHARACTERS)
    hashed = chain.from_iterable(hash_words(batch.column("text").to_pylist()) for batch in batches)
    for found in chain.from_iterable(matches_of_each(*words, loaded) for words in hashed):
        hits = sorted((-count, item) for item, count in found.items())
        if not hits:
            verdicts.append(kept())
            continue
        (count, (task, item)), more = hits[0], len(hits) - 1
        others = f" and of {more} other items" if more else ""
        detail = f"{-count} n-grams of item {item} of {task}{others}"
        verdicts.append(dropped("decontaminate", f"contains {task}", detail))
        by_task[task] = by_task.get(task, 0) + 1
    write_table(out / VERDICTS, verdicts, VERDICTS_SCHEMA)
    return {"documents": len(verdicts), "contaminated": sum(by_task.values()), "by_task": by_task}
