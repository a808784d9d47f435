"""index_benchmarks: the n-grams of every benchmark item, for finding them in the text."""

import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from model.base_config import Config
from tasks.benchmarks.index import INDEX, INDEX_SCHEMA
from tasks.benchmarks.items import Benchmarks, fingerprint_benchmarks, item_texts, load_tasks
from tasks.engine.stage import Metrics, stage
from tasks.tables import write_table


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
        return cls(tasks=benchmarks.tasks, data=benchmarks.data, **how.model_dump())


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
        "datasets",
        "numpy",
        "xxhash",
        "pyarrow",
        "huggingface_hub",
        "pyyaml",
        "platformdirs",
    ),
    retries=2,
    fingerprint=fingerprint_benchmarks,
)
def index_benchmarks(config: IndexBenchmarksConfig, out: Path) -> Metrics:
    """Write index.parquet: n, hash, task, item; one row for each n-gram of each item, sorted."""
    import numpy as np

    from tasks.ngrams import WordHasher, ngram_hashes

    hasher = WordHasher()
    rows: set[tuple[int, int, str, int]] = set()
    metrics: Metrics = {}
    with tempfile.TemporaryDirectory() as folder:
        _, tasks = load_tasks(config, Path(folder))
        for task in tasks:
            name = str(task.config.task)
            items = item_texts(task)
            hashed = {
                item: [(hasher(question), hasher(answer)) for question, answer in pairs]
                for item, pairs in items.items()
            }
            start, end = _common_ends(
                [question.tolist() for pairs in hashed.values() for question, _ in pairs]
            )
            checkable = 0
            for item, pairs in hashed.items():
                before = len(rows)
                for question, answer in pairs:
                    words = np.concatenate((question[start : len(question) - end], answer))
                    n = min(config.n_gram, len(words))
                    if n >= config.min_words:
                        rows.update((n, int(value), name, item) for value in ngram_hashes(words, n))
                checkable += len(rows) > before
            metrics[name] = {
                "items": len(items),
                "checkable": checkable,
                "uncheckable": len(items) - checkable,
            }
    owners: dict[tuple[int, int], set[tuple[str, int]]] = {}
    for n, value, name, item in rows:
        owners.setdefault((n, value), set()).add((name, item))
    kept: list[dict[str, Any]] = [
        {"n": n, "hash": value, "task": name, "item": item}
        for n, value, name, item in sorted(rows)
        if len(owners[n, value]) <= config.max_items
    ]
    write_table(out / INDEX, kept, INDEX_SCHEMA)
    templates = sum(len(items) > config.max_items for items in owners.values())
    return {"tasks": metrics, "n_grams": len(kept), "template_n_grams": templates}
