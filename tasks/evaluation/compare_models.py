"""compare_models: is a challenger better than the champion, item by item and byte by byte?

One process: it reads one row for each held-out document and benchmark item, figures that others have computed.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from model.base_config import Config
from model.errors import StageFailed
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.evaluation.held_out import HELD_OUT
from tasks.evaluation.intervals import bootstrap_interval, compare_items, pool, surely_worse
from tasks.evaluation.items import ITEMS
from tasks.tables import read_table
from tasks.text.new_documents import NEW

COMPARISON = "comparison.json"


class CompareModelsConfig(Config):
    """When a challenger is better."""

    margin_bits_per_byte: float = Field(
        0.002,
        ge=0,
        description="The interval of the difference in held-out bits per byte must lie below minus this, in bits.",
    )


MIN_UNITS = 20
"""Documents or blocks of text, of old and of new text each, below which an interval promises more than it holds."""


def _held_out_pairs(champion: Path, challenger: Path, ids: set[str] | None) -> Any:
    """Nats of champion and challenger and bytes of each unit: (units, 3).

    Units are documents, or where those are too few, their windows, if both models have the same ones.
    """
    import numpy as np

    windows = [
        {
            (row["id"], row["window"]): row
            for row in read_table(folder / HELD_OUT).to_pylist()
            if ids is None or row["id"] in ids
        }
        for folder in (champion, challenger)
    ]
    documents: list[dict[str, Any]] = [{}, {}]
    for own, sums in zip(windows, documents, strict=True):
        for (name, _), row in own.items():
            former = sums.get(name, {"nats": 0.0, "bytes": 0})
            sums[name] = {part: former[part] + row[part] for part in former}

    def agree(first: dict[Any, Any], second: dict[Any, Any]) -> bool:
        return first.keys() == second.keys() and all(
            first[name]["bytes"] == second[name]["bytes"] for name in first
        )

    if not agree(*documents):
        raise StageFailed("champion and challenger were measured on different held-out documents")
    units: list[dict[Any, Any]] = [*documents]
    if len(documents[0]) < MIN_UNITS and agree(*windows):
        units = [*windows]
    first, second = units
    rows = [(first[name]["nats"], second[name]["nats"], first[name]["bytes"]) for name in sorted(first)]
    return np.array(rows, np.float64).reshape(-1, 3)


def compare_held_out(old: Any, new: Any) -> dict[str, Any]:
    """Differences in bits per byte, challenger minus champion, on old and on new text, and their mean with its interval.

    Args:
        old, new: arrays (units, 3) of nats of the champion, nats of the challenger, and bytes.

    Documents, or blocks of text, are the unit of the paired bootstrap; old and new text count the same. Of fewer than two of
    one kind there is no interval, and no difference of both.
    """
    import numpy as np

    def bits(rows: Any, column: int) -> Any:
        return rows[..., column].sum(-1) / np.log(2) / rows[..., 2].sum(-1)

    def difference(rows: Any) -> Any:
        return bits(rows, 1) - bits(rows, 0)

    def statistic(old_rows: Any, new_rows: Any, axis: int) -> Any:
        # Resampled are positions, so that the three figures of a unit stay together.
        return (difference(old[old_rows.astype(int)]) + difference(new[new_rows.astype(int)])) / 2

    differences: dict[str, Any] = {}
    for name, rows in (("old", old), ("new", new)):
        differences[name] = {
            "units": len(rows),
            "bytes": int(rows[:, 2].sum()),
            "champion": float(bits(rows, 0)) if len(rows) else None,
            "challenger": float(bits(rows, 1)) if len(rows) else None,
            "difference": float(difference(rows)) if len(rows) else None,
        }
    if min(len(old), len(new)) < 2:
        return {**differences, "difference": None, "interval": None}
    differences["difference"] = (differences["old"]["difference"] + differences["new"]["difference"]) / 2
    differences["interval"] = bootstrap_interval((np.arange(len(old)), np.arange(len(new))), statistic)
    return differences


def _benchmark_rows(folder: Path) -> dict[str, dict[int, float]]:
    rows: dict[str, dict[int, float]] = {}
    for row in read_table(folder / ITEMS, ["task", "item", "correct"]).to_pylist():
        if row["correct"] is not None:
            rows.setdefault(row["task"], {})[row["item"]] = row["correct"]
    return rows


def verdict(held_out: dict[str, Any], benchmarks: dict[str, Any], margin: float) -> tuple[bool, str]:
    """Whether the challenger is better, and why: one sentence.

    Held-out text decides. Benchmarks have a veto, of all together or of single ones, at 2.5% each for equal models
    whatever their number: by each one's own interval ten of them would refuse every fifth equal model.
    """
    units = min(held_out["old"]["units"], held_out["new"]["units"])
    if units < MIN_UNITS:
        return False, (
            f"there is too little held-out text to judge: {units} documents or blocks of text of old or new text, and "
            f"{MIN_UNITS} are needed"
        )
    low, high = held_out["interval"]
    shown = f"{held_out['difference']:+.4f} bits per byte, 95% interval {low:+.4f} to {high:+.4f}"
    if not high < -margin:
        return False, f"held-out text is not surely better by {margin}: {shown}"
    worse = surely_worse(benchmarks)
    if worse:
        return False, f"surely worse on {', '.join(worse)}; held-out text: {shown}"
    pooled = pool(benchmarks)
    if pooled and pooled["interval"][1] < 0:
        return False, (
            f"worse on the benchmarks together, by {-pooled['difference']:.4f} of their items; held-out text: {shown}"
        )
    return True, f"held-out text is better: {shown}, and the benchmarks are not surely worse"


@stage(libraries=("scipy", "numpy", "pyarrow"))
def compare_models(
    config: CompareModelsConfig,
    champion_old: Artifact,
    challenger_old: Artifact,
    champion_new: Artifact,
    challenger_new: Artifact,
    champion_scores: Artifact,
    challenger_scores: Artifact,
    new: Artifact,
    out: Path,
) -> Metrics:
    """Write comparison.json: differences with intervals, and the verdict.

    Args:
        champion_old, challenger_old: both on the champion's held-out documents.
        champion_new, challenger_new: both on the held-out documents of now, of which the new ones count.
        champion_scores, challenger_scores: both on the benchmarks.
        new: result of find_new.

    Raises:
        StageFailed: if the two were not measured on the same documents and items.
    """
    ids = set(json.loads((new.path / NEW.format(side="validation")).read_text()))
    held_out = compare_held_out(
        _held_out_pairs(champion_old.path, challenger_old.path, None),
        _held_out_pairs(champion_new.path, challenger_new.path, ids),
    )
    first, second = _benchmark_rows(champion_scores.path), _benchmark_rows(challenger_scores.path)
    if first.keys() != second.keys():
        raise StageFailed("champion and challenger answered different benchmarks")
    benchmarks = {task: compare_items(first[task], second[task]) for task in sorted(first)}
    better, reason = verdict(held_out, benchmarks, config.margin_bits_per_byte)
    comparison = {
        "better": better,
        "reason": reason,
        "held_out": held_out,
        "benchmarks": benchmarks,
        "benchmarks_together": pool(benchmarks),
    }
    (out / COMPARISON).write_text(json.dumps(comparison, indent=1, sort_keys=True) + "\n")
    return comparison
