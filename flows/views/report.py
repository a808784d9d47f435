"""The report of a run: one HTML file that opens from disk, rendered from manifests and metric files."""

from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml
from rich.text import Text

from flows.runs.fates import Fates, dropped_examples
from flows.runs.record import REPORT, Run
from flows.runs.worth import WORTH
from flows.views.charts import score_chart, training_charts
from flows.views.rows import (
    answer_rows,
    comparison_rows,
    score_rows,
    text_difference_rows,
    text_rows,
    waterfall,
    worth_rows,
)
from flows.views.terminal import training_lines_of
from model.files import read_json, write_whole
from tasks.engine.store import Store, Stored
from tasks.tables import read_json_lines
from tasks.text.document_shards import ERRORS

TEMPLATE = "report.html.jinja"
REPORTS_VARIABLE = "SCRATCHLM_REPORTS_URL"
"""Environment variable with the address at which `serve` shows the folder of runs."""

_MOST_ERRORS = 50
_EXAMPLES, _EXAMPLE_CHARACTERS = 3, 500


def training_lines(run: Run, stored: dict[str, Stored]) -> list[dict[str, Any]]:
    """What the run's training measured, step by step; none if it trained nothing."""
    name = run.node_with_role("train")
    return read_json_lines(stored[name].out / "figures" / "metrics.jsonl") if name in stored else []


def _stages(run: Run, stored: dict[str, Stored]) -> list[dict[str, Any]]:
    """A row for each stage: what it cost when it was built, and whether this run built it."""
    return [
        {
            "name": name,
            "how": "cached" if entry["cached"] else "built",
            "shards": entry["shards"],
            "key": entry["key"],
            "digest": entry["digest"],
            "libraries": entry["ingredients"]["libraries"],
            "manifest": stored[name].manifest if name in stored else None,
        }
        for name, entry in run.record["stages"].items()
    ]


def environment() -> jinja2.Environment:
    """The templates of this folder."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_report(run: Run, store: Store) -> Path:
    """Write report.html into the folder of a run, from what the run came to; returns its path."""
    stored = run.all_stored(store)
    manifests = {name: result.manifest for name, result in stored.items()}
    metrics = {name: manifest.metrics for name, manifest in manifests.items()}
    # What a fine-tuning reads and trains is shown where a pretraining shows its own.
    read, train = run.node_with_role("read"), run.node_with_role("train")
    lines, falls = training_lines(run, stored), waterfall(run, manifests)
    benchmarks = metrics.get("evaluate_model", {}).get("benchmarks", {})
    worth = run.record.get(WORTH)
    html = (
        environment()
        .get_template(TEMPLATE)
        .render(
            run=run.name,
            record=run.record,
            metrics=metrics,
            read=metrics.get(read) if read else None,
            training=metrics.get(train) if train else None,
            mfu=metrics[train].get("mfu") if train in metrics else None,
            training_notes=_notes(metrics[train]) if train in metrics else [],
            forecast=run.record.get("forecast"),
            took=_seconds_between(run.record),
            host=manifests[train].host if train in manifests else {},
            falls=falls,
            most=max((fall.kept + sum(fall.dropped.values()) for fall in falls), default=1),
            examples=_examples(run, store),
            unusable=read_json_lines(stored[read].out / ERRORS)[:_MOST_ERRORS] if read in stored else [],
            most_errors=_MOST_ERRORS,
            tokenizer_samples=_samples(stored, "train_tokenizer"),
            samples=_samples(stored, "evaluate_held_out"),
            training_svgs=training_charts(lines) if len(lines) > 1 else [],
            score_svg=score_chart(benchmarks) if benchmarks else "",
            scores=score_rows(benchmarks, metrics.get("base_benchmarks", {}).get("benchmarks")),
            held_out=metrics.get("evaluate_held_out"),
            texts=text_rows(metrics),
            answers=answer_rows(metrics["compare_answers"]["groups"]) if "compare_answers" in metrics else [],
            comparison=metrics.get("compare_models"),
            comparison_rows=comparison_rows(metrics["compare_models"]) if "compare_models" in metrics else [],
            worth=worth,
            worth_rows=worth_rows(worth) if worth else [],
            text_difference_rows=text_difference_rows(worth["texts"]) if worth and worth["texts"] else [],
            stages=_stages(run, stored),
            recipe=yaml.safe_dump(run.record["recipe"], sort_keys=False, allow_unicode=True),
            machine=yaml.safe_dump(run.record["machine"], sort_keys=False),
        )
    )
    path = run.path / REPORT
    write_whole(path, html)
    return path


def _examples(run: Run, store: Store) -> dict[str, list[dict[str, Any]]]:
    """Some documents that each step dropped; none where the run read no text."""
    if run.node_with_role("read") is None:
        return {}
    return dropped_examples(Fates(run, store), _EXAMPLES, _EXAMPLE_CHARACTERS)


def _seconds_between(record: dict[str, Any]) -> float | None:
    """Seconds from the beginning of a run to its end; None while it has none."""
    if not record.get("ended"):
        return None
    begun, ended = (datetime.fromisoformat(record[name]) for name in ("created", "ended"))
    return (ended - begun).total_seconds()


def _notes(figures: dict[str, Any]) -> list[str]:
    """What a person should know of a training, without the colours of a terminal."""
    return [Text.from_markup(line).plain for line in training_lines_of(figures)]


def _samples(stored: dict[str, Stored], name: str) -> Any:
    return read_json(stored[name].out / "figures" / "samples.json") if name in stored else None
