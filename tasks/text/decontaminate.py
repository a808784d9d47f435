"""decontaminate: which documents contain a benchmark item."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.benchmarks.index import INDEX
from tasks.engine.stage import Artifact, Metrics, Shard, map_stage
from tasks.tables import read_column, read_table, write_table
from tasks.text.documents import DOCUMENTS
from tasks.text.verdicts import VERDICTS, VERDICTS_SCHEMA, dropped, kept

if TYPE_CHECKING:
    import numpy as np


@lru_cache(maxsize=2)
def _load_index(path: Path) -> dict[int, tuple["np.ndarray", list[str], "np.ndarray"]]:
    """For each n: sorted hashes, and the task and item of each."""
    import numpy as np

    table = read_table(path)
    lengths = table.column("n").to_numpy()
    index = {}
    for n in np.unique(lengths).tolist():
        chosen = np.flatnonzero(lengths == n)
        part = table.take(chosen)
        hashes = part.column("hash").to_numpy()
        order = np.argsort(hashes, kind="stable")
        names = part.column("task").to_pylist()
        index[n] = (hashes[order], [names[i] for i in order], part.column("item").to_numpy()[order])
    return index


def _matches(words: "np.ndarray", index: dict[int, Any]) -> dict[tuple[str, int], int]:
    """Number of distinct n-grams of each (task, item) that the words contain."""
    import numpy as np

    from tasks.ngrams import ngram_hashes

    counts: dict[tuple[str, int], int] = {}
    for n, (hashes, tasks, items) in index.items():
        own = np.unique(ngram_hashes(words, n))
        first, last = np.searchsorted(hashes, own, "left"), np.searchsorted(hashes, own, "right")
        for hit in np.flatnonzero(last > first):
            for i in range(first[hit], last[hit]):
                item = (tasks[i], int(items[i]))
                counts[item] = counts.get(item, 0) + 1
    return counts


@map_stage(libraries=("numpy", "xxhash", "pyarrow"))
def decontaminate(documents: Shard, index: Artifact, out: Path) -> Metrics:
    """Write verdicts.parquet, row by row: a document that contains a benchmark item is not kept.

    One n-gram of an item is enough, and index_benchmarks says how long it is.
    """
    from tasks.ngrams import WordHasher

    loaded, hasher = _load_index(index.path / INDEX), WordHasher()
    verdicts: list[dict[str, Any]] = []
    by_task: dict[str, int] = {}
    for text in read_column(documents.path / DOCUMENTS, "text"):
        hits = sorted((-count, item) for item, count in _matches(hasher(text), loaded).items())
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
