"""What a run leaves on its page in the Prefect UI: summary, tables, the curve of the loss, and a question."""

import asyncio
import base64
import os
from typing import Any

import httpx
from prefect.artifacts import (
    acreate_image_artifact,
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.exceptions import FlowPauseTimeout, PrefectException
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from pydantic import Field

from flows.recipe.recipe import Recipe
from flows.runs.record import REPORT, Run
from flows.runs.worth import WORTH
from flows.views.charts import loss_image
from flows.views.report import REPORTS_VARIABLE, render_report, training_lines
from flows.views.rows import (
    ANSWER_COLUMNS,
    SCORE_COLUMNS,
    answer_rows,
    as_markdown,
    columns,
    comparison_rows,
    fall_rows,
    score_rows,
    waterfall,
    worth_rows,
)
from tasks.engine.manifest import Manifest
from tasks.engine.progress import Progress
from tasks.engine.store import Store

_ARTIFACT_SECONDS = 3.0


class ProgressArtifact:
    """A Prefect progress artifact that follows a stage, a few times a minute."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.newest: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        self.newest = progress

    async def follow(self) -> None:
        """Write the newest progress until cancelled; while the server is away there is nothing to write to."""
        artifact: Any = None
        while True:
            await asyncio.sleep(_ARTIFACT_SECONDS)
            if not self.newest or not (self.newest.total or self.newest.note):
                continue
            percent = 100 * self.newest.done / max(1, self.newest.total)
            counted = (
                f"{self.newest.done:,} of {self.newest.total:,} {self.newest.unit}"
                if self.newest.total
                else ""
            )
            description = f"{self.stage}: {', '.join(filter(None, (counted, self.newest.note)))}"
            try:
                if artifact is None:
                    artifact = await acreate_progress_artifact(percent, description=description)
                else:
                    await aupdate_progress_artifact(artifact, percent, description=description)
            except (httpx.HTTPError, PrefectException):
                continue


def report_link(run: Run) -> str:
    """Markdown that leads to the report: a link if a server shows it, else its path."""
    base = os.environ.get(REPORTS_VARIABLE)
    return f"[report]({base}/{run.name}/{REPORT})" if base else f"report: `{run.path / REPORT}`"


def summary_markdown(run: Run, manifests: dict[str, Manifest]) -> str:
    """Scores and the way to the report."""
    parts = [f"# {run.record['recipe']['name']}"]
    if "evaluate_held_out" in manifests:
        held_out = manifests["evaluate_held_out"].metrics
        parts.append(
            f"**{held_out['bits_per_byte']:.4f} bits per byte** of {held_out['documents']} held-out documents"
        )
    benchmarks = manifests["evaluate_model"].metrics["benchmarks"] if "evaluate_model" in manifests else {}
    if benchmarks:
        parts.append(as_markdown(columns(score_rows(benchmarks), *SCORE_COLUMNS)))
    if "compare_answers" in manifests:
        answers = answer_rows(manifests["compare_answers"].metrics["groups"])
        parts.append(as_markdown(columns(answers, *ANSWER_COLUMNS)))
    return "\n\n".join([*parts, f"run `{run.name}`, {report_link(run)}"])


async def publish(run: Run, store: Store) -> None:
    """Render the report, and put summary, tables and loss curve on the page of the flow run.

    A server that does not answer costs the page, not the run.
    """
    render_report(run, store)
    stored = run.all_stored(store)
    manifests = {name: result.manifest for name, result in stored.items()}
    falls, lines = fall_rows(waterfall(run, manifests)), training_lines(run, stored)
    try:
        await acreate_markdown_artifact(
            summary_markdown(run, manifests), key="summary", description="Scores and report."
        )
        if falls:
            await acreate_table_artifact(falls, key="waterfall", description="Where every document ended.")
        if lines:
            url = f"data:image/png;base64,{base64.b64encode(loss_image(lines)).decode()}"
            await acreate_image_artifact(url, key="loss", description="Loss while training.")
        if "compare_models" in manifests:
            comparison = manifests["compare_models"].metrics
            await acreate_table_artifact(
                comparison_rows(comparison), key="comparison", description=comparison["reason"]
            )
        if run.record.get(WORTH):
            worth = run.record[WORTH]
            await acreate_table_artifact(worth_rows(worth), key="worth", description=worth["sentence"])
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("the page of this run is not complete: %s", type(error).__name__)


class Approval(RunInput):
    """What a person says of a challenger."""

    approve: bool = Field(False, description="Make it the champion.")
    reason: str = Field("", description="Why; kept in the champion's history.")


async def ask(recipe: Recipe, run: Run, comparison: dict[str, Any]) -> Approval | None:
    """Pause the flow until a person answers in the UI; None if nobody does in time."""
    table = as_markdown(comparison_rows(comparison))
    form: Any = Approval.with_initial_data(
        description=f"{table}\n\nMake {run.name} the champion of {recipe.name}?"
    )
    try:
        return await pause_flow_run(wait_for_input=form, timeout=int(recipe.retrain.approval_hours * 3600))
    except FlowPauseTimeout:
        return None
