"""compare_answers: does the tuned model answer held-out conversations better than its base?"""

import math
from pathlib import Path
from typing import Any

from model.errors import StageFailed
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.evaluation.answers import ANSWERS
from tasks.evaluation.intervals import compare_items
from tasks.tables import read_table


def _bits_per_byte(rows: list[dict[str, Any]]) -> float:
    return sum(row["nats"] for row in rows) / math.log(2) / max(1.0, sum(row["bytes"] for row in rows))


def _share_formed(rows: list[dict[str, Any]]) -> float | None:
    """Share of the answers that have the form asked for; None if none is asked for."""
    formed = [row["formed"] for row in rows if row["formed"] is not None]
    return sum(formed) / len(formed) if formed else None


@stage(libraries=("numpy", "scipy", "pyarrow"))
def compare_answers(base: Artifact, tuned: Artifact, out: Path) -> Metrics:
    """Compare the answers of both, group by group: shares of right ones, difference with its 95% interval, bits per byte.

    Args:
        base, tuned: results of evaluate_answers on the same conversations.

    Raises:
        StageFailed: if the conversations are not the same.
    """
    first, second = (read_table(folder.path / ANSWERS).to_pylist() for folder in (base, tuned))
    if [row["id"] for row in first] != [row["id"] for row in second]:
        raise StageFailed("base and tuned model were asked different conversations")
    groups: dict[str, Any] = {}
    for name in dict.fromkeys(row["group"] for row in first):
        rows = [(old, new) for old, new in zip(first, second, strict=True) if old["group"] == name]
        old_rows, new_rows = [old for old, _ in rows], [new for _, new in rows]
        correct = compare_items(
            *({i: row["correct"] for i, row in enumerate(side)} for side in (old_rows, new_rows))
        )
        groups[name] = {
            "conversations": len(rows),
            "base": correct["champion"],
            "tuned": correct["challenger"],
            "difference": correct["difference"],
            "interval": correct["interval"],
            "base_bits_per_byte": _bits_per_byte(old_rows),
            "tuned_bits_per_byte": _bits_per_byte(new_rows),
            "base_form": _share_formed(old_rows),
            "tuned_form": _share_formed(new_rows),
            "examples": [
                {
                    "question": new["question"],
                    "expected": new["expected"],
                    "base": old["answered"],
                    "tuned": new["answered"],
                }
                for wanted in (1.0, 0.0)
                for old, new in [pair for pair in rows if pair[1]["correct"] == wanted][:3]
            ],
        }
    return {"groups": groups}
