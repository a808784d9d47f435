"""index_benchmarks: the n-grams of every benchmark item, for finding them in the text.

One process: it reads benchmarks, some ten thousand items of a few hundred words, and no text, however much there is of that.
"""

import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from model.base_config import Config
from tasks.benchmarks.index import INDEX, INDEX_SCHEMA
from tasks.benchmarks.items import Benchmarks, fingerprint_benchmarks, item_texts, load_tasks
from tasks.benchmarks.search import load_index, matches
from tasks.engine.stage import Metrics, stage
from tasks.tables import write_arrays

_TRIED_ITEMS = 200
_PROSE = "It was late in the evening when they came home, and nobody had lit the lamps."
"""What stands around a planted leak."""


class NGramsConfig(Config):
    """How benchmark items become n-grams; tasks and data are those of evaluate_model."""

    n_gram: int = Field(
        13,
        ge=2,
        le=50,
        description="Length of an n-gram, in words (GPT-3's 13, arXiv 2005.14165, appendix C).",
    )
    min_words: int = Field(
        8, ge=2, description="Items with fewer words cannot be checked; up to n_gram they match as a whole."
    )
    max_items: int = Field(
        10, ge=1, description="An n-gram in more items than this is a template, and is left out."
    )

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.min_words > self.n_gram:
            raise ValueError(
                f"index_benchmarks.min_words ({self.min_words}) is larger than n_gram ({self.n_gram}), so that nothing could "
                "match: lower min_words"
            )
        return self


class IndexBenchmarksConfig(NGramsConfig, Benchmarks):
    """The section index_benchmarks of a recipe, with tasks and data of evaluate_model."""

    @classmethod
    def of(cls, how: NGramsConfig, benchmarks: Benchmarks) -> Self:
        """N-grams of all items of the very benchmarks that are evaluated."""
        chosen = benchmarks.model_dump(include={"tasks", "data", "questions"})
        return cls(**chosen, **how.model_dump())


def _common_ends(contexts: list[list[int]]) -> tuple[int, int]:
    """Number of words that all contexts begin and end with: the prompt's own, such as Question and Answer."""
    distinct = [list(words) for words in {tuple(words) for words in contexts}]
    if len(distinct) < 2:
        return 0, 0

    def common(lists: list[list[int]]) -> int:
        return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*lists, strict=False)))

    start = common(distinct)
    return start, common([words[start:][::-1] for words in distinct])


@stage(
    libraries=(
        "lm_eval",
        "jinja2",
        "datasets",
        "numpy",
        "pyarrow",
        "huggingface_hub",
        "pyyaml",
        "platformdirs",
    ),
    retries=2,
    fingerprint=fingerprint_benchmarks,
)
def index_benchmarks(config: IndexBenchmarksConfig, out: Path) -> Metrics:
    """Write index.parquet: n, hash, task, item; one row for each n-gram of each item, sorted.

    Its figures tell for each task how many items can be looked for, and how many are found again when they are put
    into a text in five common ways.
    """
    import numpy as np

    from tasks.benchmarks.leaks import Item, items_of
    from tasks.ngrams import WordHasher

    hasher = WordHasher()
    metrics: Metrics = {}
    items: dict[str, dict[int, Item]] = {}
    # n, hashes, tasks and items; begun with none, so that no benchmark at all is no special case.
    rows: list[tuple[Any, ...]] = [tuple(np.empty(0, kind) for kind in (np.uint8, np.uint64, int, int))]
    with tempfile.TemporaryDirectory() as folder:
        tasks = [] if config.is_empty else load_tasks(config, Path(folder))[1]
        for position, task in enumerate(tasks):
            name = str(task.config.task)
            items[name] = items_of(task, item_texts(task))
            contexts = [
                hasher(question).tolist() for item in items[name].values() for question, _ in item.pairs
            ]
            ends = _common_ends(contexts)
            checkable = 0
            for number, item in items[name].items():
                own = _ngrams(item, ends, hasher, config)
                checkable += bool(own)
                for n, hashes in own.items():
                    rows.append(
                        (
                            np.full(len(hashes), n, np.uint8),
                            hashes,
                            np.full(len(hashes), position),
                            np.full(len(hashes), number),
                        )
                    )
            total = len(items[name])
            metrics[name] = {"items": total, "checkable": checkable, "uncheckable": total - checkable}
    columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
    (n, hashes, positions, numbers), templates = _without_templates(columns, config.max_items)
    names = np.array(list(items), object)
    write_arrays(
        out / INDEX, {"n": n, "hash": hashes, "task": names[positions], "item": numbers}, INDEX_SCHEMA
    )
    index = load_index(out / INDEX)
    for name, own_items in items.items():
        metrics[name]["recall"] = _recall(name, own_items, index, hasher, config.min_words)
    return {"tasks": metrics, "n_grams": len(n), "template_n_grams": templates}


def _ngrams(item: Any, ends: tuple[int, int], hasher: Any, config: NGramsConfig) -> dict[int, Any]:
    """Hashes of all n-grams by which an item is looked for, by n.

    Args:
        ends: words at the beginning and the end of rendered questions that are the prompt's own.
    """
    import numpy as np

    from tasks.benchmarks.leaks import searched
    from tasks.ngrams import ngrams_of

    start, end = ends
    texts = [
        np.concatenate((words[start : len(words) - end], hasher(answer)))
        for question, answer in item.pairs
        for words in [hasher(question)]
    ]
    texts += [hasher(text) for text in searched(item)]
    texts_by_n: dict[int, list[Any]] = {}
    for words in texts:
        n = min(config.n_gram, len(words))
        if n >= config.min_words:
            texts_by_n.setdefault(n, []).append(words)
    return {
        n: np.unique(ngrams_of(np.concatenate(same), np.cumsum([0, *map(len, same)]), n)[0])
        for n, same in texts_by_n.items()
    }


def _without_templates(columns: list[Any], max_items: int) -> tuple[list[Any], int]:
    """Columns n, hash, task and item, sorted, without n-grams that too many items have; and how many those are."""
    import numpy as np

    n, hashes, tasks, numbers = columns
    order = np.lexsort((numbers, tasks, hashes, n))
    n, hashes, tasks, numbers = (column[order] for column in columns)
    starts = np.flatnonzero(np.concatenate(([True], (hashes[1:] != hashes[:-1]) | (n[1:] != n[:-1]))))
    counts = np.diff(np.concatenate((starts, [len(n)])))
    keep = np.repeat(counts <= max_items, counts)
    return [column[keep] for column in (n, hashes, tasks, numbers)], int((counts > max_items).sum())


def _recall(name: str, items: dict[int, Any], index: Any, hasher: Any, min_words: int) -> dict[str, Any]:
    """For each kind of leak, of how many items it was tried, and which share was found; too short ones are not tried."""
    from tasks.benchmarks.leaks import KINDS, leaks

    step = max(1, len(items) // _TRIED_ITEMS)
    tried: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for number in list(items)[::step]:
        for kind, text in leaks(items[number]).items():
            words = hasher(f"{_PROSE} {text} {_PROSE}")
            if len(hasher(text)) >= min_words:
                tried[kind].append((name, number) in matches(words, index))
    return {
        kind: {"tried": len(found), "found": round(sum(found) / len(found), 4) if found else None}
        for kind, found in tried.items()
    }
