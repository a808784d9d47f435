"""Rows of the tables that a person reads: made once, shown in the terminal, in Prefect and in the report.

A row is a dictionary from the head of a column to the text of its cell. The first column
names what the row is of.
"""

from dataclasses import dataclass
from typing import Any

from flows.runs.record import Run
from tasks.engine.manifest import Manifest

Row = dict[str, str]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _interval(interval: list[float], form: str) -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"


def columns(rows: list[Row], *names: str) -> list[Row]:
    """The same rows with these columns only, in this order."""
    return [{name: row[name] for name in names} for row in rows]


def as_markdown(rows: list[Row]) -> str:
    """Rows as a table in markdown."""
    heads = list(rows[0])
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row.values())} |" for row in rows)])


def score_rows(benchmarks: dict[str, Any], base: dict[str, Any] | None = None) -> list[Row]:
    """Scores beside chance, those of the base model last if there is one.

    Args:
        benchmarks, base: figures of evaluate_model, by benchmark.
    """
    scored = [*benchmarks.items(), *((f"{name}, base", score) for name, score in (base or {}).items())]
    return [
        {
            "benchmark": name,
            "accuracy": _number(score.get("acc"), ".3f"),
            "standard error": _number(score.get("acc_stderr"), ".3f"),
            "chance": _number(score.get("chance"), ".3f"),
            "accuracy, length-normalised": _number(score.get("acc_norm"), ".3f"),
            "answer bits/byte": _number(score.get("answer_bits_per_byte"), ".3f"),
            "items": f"{score['items']:,}",
            "longer than the context": str(score.get("truncated_items", "")),
        }
        for name, score in scored
    ]


SCORE_COLUMNS = ("benchmark", "accuracy", "standard error", "chance", "answer bits/byte", "items")
"""What of a score is shown where there is little room."""


def answer_rows(groups: dict[str, Any]) -> list[Row]:
    """Held-out answers of base and tuned model, by group; figures of compare_answers."""
    return [
        {
            "held-out answers": name,
            "base": _number(group["base"], ".3f"),
            "tuned": _number(group["tuned"], ".3f"),
            "difference": _number(group["difference"], "+.3f"),
            "95% interval": _interval(group["interval"], "+.3f"),
            "base in form": _number(group["base_form"], ".3f"),
            "in form": _number(group["tuned_form"], ".3f"),
            "base bits/byte": _number(group["base_bits_per_byte"], ".3f"),
            "tuned bits/byte": _number(group["tuned_bits_per_byte"], ".3f"),
            "number": f"{group['conversations']:,}",
        }
        for name, group in groups.items()
    ]


ANSWER_COLUMNS = ("held-out answers", "base", "tuned", "difference", "95% interval", "in form", "number")
"""What of the answers is shown where there is little room."""


def comparison_rows(comparison: dict[str, Any]) -> list[Row]:
    """Champion and challenger, measure by measure; figures of compare_models."""

    def row(measure: str, of: dict[str, Any], form: str, count: str) -> Row:
        return {
            "measure": measure,
            "champion": _number(of.get("champion"), form),
            "challenger": _number(of.get("challenger"), form),
            "difference": _number(of["difference"], f"+{form}"),
            "95% interval": _interval(of["interval"], f"+{form}") if of.get("interval") else "",
            "units or items": count,
        }

    held_out = comparison["held_out"]
    rows = [
        row(f"bits per byte, held-out {kind} text", held_out[kind], ".4f", f"{held_out[kind]['units']:,}")
        for kind in ("old", "new")
    ]
    rows.append(row("bits per byte, old and new in equal weight", held_out, ".4f", ""))
    scores = comparison["benchmarks"].items()
    if comparison["benchmarks_together"]:
        together = comparison["benchmarks_together"]
        rows.append(
            row("benchmarks together, accuracy", together, ".3f", f"{together['tasks']:,} benchmarks")
        )
    return rows + [row(f"{name}, accuracy", score, ".3f", f"{score['items']:,}") for name, score in scores]


def text_rows(metrics: dict[str, dict[str, Any]]) -> list[Row]:
    """Held-out text of base and tuned model; empty if none was learnt.

    Args:
        metrics: figures by name of the node.
    """
    pairs = {
        "text of the domain": ("base_on_new_text", "evaluate_held_out"),
        "old text": ("base_on_old_text", "tuned_on_old_text"),
    }
    return [
        {
            "held-out text": text,
            "documents": f"{metrics[base]['documents']:,}",
            "base, bits/byte": f"{metrics[base]['bits_per_byte']:.4f}",
            "tuned, bits/byte": f"{metrics[tuned]['bits_per_byte']:.4f}",
        }
        for text, (base, tuned) in pairs.items()
        if {base, tuned} <= metrics.keys()
    ]


def worth_rows(worth: dict[str, Any]) -> list[Row]:
    """Models with and without a part of the recipe, on each kind of held-out text.

    Args:
        worth: what `flows.runs.worth` found out.
    """
    return [
        {
            "held out of": text,
            "documents": f"{one['documents']:,}",
            "with": f"{one['having']:.4f}",
            "without": f"{one['without']:.4f}",
            "worth": f"{one['worth']:+.4f}",
            "seeds +-": f"{one['by_seeds']:.4f}",
            "documents +-": f"{one['by_documents']:.4f}",
        }
        for text, one in worth["differences"].items()
    ]


def text_difference_rows(texts: dict[str, Any]) -> list[Row]:
    """How the training text differs with and without a part of the recipe."""
    rows = [
        {"training text": f"documents {kind}", "number": f"{count:,}"}
        for kind, count in texts["documents"].items()
    ]
    return rows + [
        {"training text": f"tokens {head} it", "number": f"{count:,}"}
        for head, count in texts["tokens"].items()
    ]


@dataclass(frozen=True)
class Fall:
    """A step of the waterfall: documents that go on after it, and why others do not."""

    stage: str
    kept: int
    dropped: dict[str, int]


def waterfall(run: Run, manifests: dict[str, Manifest]) -> list[Fall]:
    """Where every document ended."""
    falls = []
    read = run.node_with_role("read")
    if read in manifests:
        metrics = manifests[read].metrics
        falls.append(Fall(read, metrics["documents"], metrics["errors"]))
    if "clean" in manifests:
        metrics = manifests["clean"].metrics
        falls.append(Fall("clean", metrics["kept"], metrics["dropped"]))
    if "split" in manifests:
        metrics = manifests["split"].metrics
        kept = metrics["train"]["documents"] + metrics["validation"]["documents"]
        falls.append(Fall("deduplicate and decontaminate", kept, metrics["dropped"]))
        falls.append(Fall("train", metrics["train"]["documents"], {}))
        falls.append(Fall("validation", metrics["validation"]["documents"], {}))
    return falls


@dataclass(frozen=True)
class Fate:
    """What a stage left of the documents that it judged.

    Attributes:
        dropped: number by reason.
        field: of the recipe, that drops most of them; empty if none does.
        unit: what is counted.
    """

    kept: int
    dropped: dict[str, int]
    field: str = ""
    unit: str = "documents"

    @property
    def share(self) -> float:
        """Share that is dropped."""
        gone = sum(self.dropped.values())
        return gone / max(1, gone + self.kept)

    @property
    def sentence(self) -> str:
        """kept, dropped, and the main reason."""
        gone = sum(self.dropped.values())
        told = f"{self.kept:,} {self.unit} kept"
        if not gone:
            return told
        reason, count = max(self.dropped.items(), key=lambda item: item[1])
        main = reason if count == gone else f"most: {reason} ({count:,})"
        return f"{told}, {gone:,} dropped ({main})"


def fate_of(stage: str, metrics: dict[str, Any]) -> Fate | None:
    """What a stage left of the documents that it judged; None if it judges none."""
    if stage in ("ingest", "read_conversations"):
        not_taken = sum(counts.get("not taken", 0) for counts in metrics["sources"].values())
        left = {"not in the share that is taken": not_taken} if not_taken else {}
        return Fate(metrics["documents"], left, unit="documents" if stage == "ingest" else "conversations")
    if stage == "clean":
        fields = metrics["dropped_by_field"]
        return Fate(metrics["kept"], metrics["dropped"], max(fields, key=fields.__getitem__, default=""))
    if stage in ("deduplicate", "deduplicate_conversations"):
        same = metrics.get("same_text", 0)
        removed = {"near-duplicates": metrics["removed"] - same, "the same text": same}
        if stage == "deduplicate_conversations":
            removed = {"repeated": metrics["removed"]}
        return Fate(
            metrics["documents"] - metrics["removed"], {why: count for why, count in removed.items() if count}
        )
    if stage == "decontaminate":
        dropped = {f"contains an item of {task}": count for task, count in metrics["by_task"].items()}
        return Fate(metrics["documents"] - metrics["contaminated"], dropped)
    return None


def fall_rows(falls: list[Fall]) -> list[Row]:
    """The waterfall as a table."""
    return [
        {
            "after": fall.stage,
            "documents": f"{fall.kept:,}",
            "left out, and why": "; ".join(f"{count:,} {why}" for why, count in fall.dropped.items()),
        }
        for fall in falls
    ]
