"""What a run leaves on its page in the Prefect UI: summary, tables, and the curve of the loss."""

import base64
import os
from typing import Any

import httpx
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact, acreate_table_artifact
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from flows.runs import Run
from flows.server import REPORTS_VARIABLE
from tasks.report import loss_image, read_lines, render_report, waterfall
from tasks.store.manifest import Manifest
from tasks.store.store import Store


def report_link(run: Run) -> str:
    """Markdown that leads to the report: a link if a server shows it, else its path."""
    base = os.environ.get(REPORTS_VARIABLE)
    path = run.path / "report.html"
    return f"[report]({base}/{run.name}/report.html)" if base else f"report: `{path}`"


def summary_markdown(run: Run, manifests: dict[str, Manifest]) -> str:
    """Scores and the way to the report."""
    lines = [f"# {run.record['recipe']['name']}", ""]
    if "evaluate_held_out" in manifests:
        held_out = manifests["evaluate_held_out"].metrics
        lines += [
            f"**{held_out['bits_per_byte']:.4f} bits per byte** of {held_out['documents']} held-out documents",
            "",
        ]
    if "evaluate_model" in manifests:
        lines += ["| benchmark | accuracy | standard error | chance | items |", "|---|---|---|---|---|"]
        for name, score in manifests["evaluate_model"].metrics["benchmarks"].items():
            cells = [f"{score[field]:.3f}" if field in score else "" for field in ("acc", "acc_stderr", "chance")]
            lines.append(f"| {name} | {' | '.join(cells)} | {score['items']:,} |")
        lines.append("")
    if "compare_answers" in manifests:
        lines += ["| held-out answers | base | tuned | difference | 95% interval |", "|---|---|---|---|---|"]
        for name, found in manifests["compare_answers"].metrics["groups"].items():
            low, high = found["interval"]
            cells = [
                f"{found['base']:.3f}",
                f"{found['tuned']:.3f}",
                f"{found['difference']:+.3f}",
                f"{low:+.3f} to {high:+.3f}",
            ]
            lines.append(f"| {name} ({found['conversations']}) | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, f"run `{run.name}`, {report_link(run)}"])


def comparison_rows(comparison: dict[str, Any]) -> list[dict[str, str]]:
    """Champion and challenger, measure by measure."""
    rows = []
    held_out = comparison["held_out"]
    for kind in ("old", "new"):
        found = held_out[kind]
        rows.append(
            {
                "measure": f"bits per byte, {kind} text ({found['documents']} documents)",
                "champion": f"{found['champion']:.4f}",
                "challenger": f"{found['challenger']:.4f}",
                "difference": f"{found['difference']:+.4f}",
                "95% interval": "",
            }
        )
    low, high = held_out["interval"]
    rows.append(
        {
            "measure": "bits per byte, old and new in equal weight", "champion": "", "challenger": "",
            "difference": f"{held_out['difference']:+.4f}", "95% interval": f"{low:+.4f} to {high:+.4f}",
        }
    )  # fmt: skip
    for name, found in comparison["benchmarks"].items():
        low, high = found["interval"]
        rows.append(
            {
                "measure": f"{name}, accuracy ({found['items']} items)",
                "champion": f"{found['champion']:.3f}",
                "challenger": f"{found['challenger']:.3f}",
                "difference": f"{found['difference']:+.3f}",
                "95% interval": f"{low:+.3f} to {high:+.3f}",
            }
        )
    return rows


def comparison_markdown(comparison: dict[str, Any]) -> str:
    """The same as a table in markdown."""
    rows = comparison_rows(comparison)
    lines = [f"| {' | '.join(rows[0])} |", "|---|---|---|---|---|", *(f"| {' | '.join(row.values())} |" for row in rows)]
    return "\n".join(lines)


async def publish(run: Run, store: Store) -> None:
    """Render the report, and put summary, tables and loss curve on the page of the flow run.

    A server that does not answer costs the page, not the run.
    """
    render_report(run.path, store)
    stored = {name: run.stored(store, name) for name in run.record["stages"]}
    manifests = {name: found.manifest for name, found in stored.items()}
    try:
        await acreate_markdown_artifact(summary_markdown(run, manifests), key="summary", description="Scores and report.")
        falls = [
            {"after": fall.stage, "documents": fall.kept, "left out, and why": "; ".join(f"{n} {why}" for why, n in fall.dropped.items())}
            for fall in waterfall(manifests)
        ]  # fmt: skip
        if falls:
            await acreate_table_artifact(falls, key="waterfall", description="Where every document ended.")
        trained = next((stored[name] for name in ("train_model", "finetune_model", "adapt_model") if name in stored), None)
        if trained:
            image = loss_image(read_lines(trained.out / "figures" / "metrics.jsonl"))
            url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
            await acreate_image_artifact(url, key="loss", description="Loss while training.")
        if "compare_models" in manifests:
            comparison = manifests["compare_models"].metrics
            await acreate_table_artifact(comparison_rows(comparison), key="comparison", description=comparison["reason"])
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("the page of this run is not complete: %s", type(error).__name__)
