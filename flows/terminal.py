"""What a person sees in the terminal: a line for each stage, bars for those that run, a table at the end."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from flows.plan import CACHED, RUN, Planned
from tasks.build import Outcome
from tasks.progress import Progress as Amount

_LINE_SECONDS = 30.0


class TerminalDisplay:
    """Bars where there is a terminal; else one line when a stage ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("  {task.description:<18}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.rows: dict[str, Any] = {}
        self.began: dict[str, float] = {}
        self.spoke: dict[str, float] = {}

    def __enter__(self) -> "TerminalDisplay":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def started(self, stage: str) -> None:
        """Show a bar of unknown length."""
        self.began[stage] = time.monotonic()
        self.rows[stage] = self.bars.add_task(stage, total=None, unit="")

    def progressed(self, stage: str, progress: Amount) -> None:
        """Move the bar; without a terminal, print a line now and then."""
        now = time.monotonic()
        if not self.console.is_terminal and progress.total and now - self.spoke.get(stage, self.began[stage]) > _LINE_SECONDS:
            self.spoke[stage] = now
            share = 100 * progress.done / progress.total
            self.console.print(
                f"  {stage:<18} {share:.0f}% of {progress.total:,} {progress.unit}, {duration(now - self.began[stage])}",
                highlight=False,
            )
        self.bars.update(self.rows[stage], completed=progress.done, total=progress.total or None, unit=progress.unit)

    def finished(self, stage: str, outcome: Outcome) -> None:
        """Print the line of a finished stage."""
        self._remove(stage)
        self.console.print(stage_line(stage, outcome), highlight=False)
        errors = sum(outcome.stored.manifest.metrics.get("errors", {}).values()) if stage == "ingest" else 0
        if errors:
            where = outcome.stored.out / "errors.jsonl"
            self.console.print(f"  [yellow]{errors} files or rows cannot be used[/], named in {where}", highlight=False)

    def failed(self, stage: str, error: BaseException) -> None:
        """Print the line of a stage that failed or was stopped."""
        self._remove(stage)
        word = "stopped" if isinstance(error, BaseException) and not isinstance(error, Exception) else "failed"
        self.console.print(f"[red]✗[/] {stage:<18} {word}", highlight=False)

    def _remove(self, stage: str) -> None:
        if stage in self.rows:
            self.bars.remove_task(self.rows.pop(stage))


def stage_line(stage: str, outcome: Outcome) -> str:
    """One line: how a stage got its result."""
    if outcome.cached:
        return f"[green]✓[/] {stage:<18} [dim]cached[/]"
    shards = ""
    if outcome.resolved.shard_keys is not None:
        shards = f", {outcome.shards_built} shards" + (f" ({outcome.shards_reused} reused)" if outcome.shards_reused else "")
    return f"[green]✓[/] {stage:<18} built in {outcome.seconds:,.1f} s{shards}"


def plan_table(rows: list[Planned]) -> Table:
    """The table that `plan` prints."""
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "state", "about", "reason"):
        table.add_column(column, justify="right" if column == "about" else "left", no_wrap=column != "reason")
    colours = {CACHED: "green", RUN: "yellow"}
    for row in rows:
        state = f"[{colours.get(row.state, 'dim')}]{row.state}[/]"
        table.add_row(row.stage, state, "" if row.seconds is None else duration(row.seconds), row.reason)
    return table


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def predict_line(rows: list[Planned]) -> str:
    """What all of it will cost, as far as earlier runs tell."""
    todo = [row for row in rows if row.state != CACHED]
    known = [row.seconds for row in todo if row.seconds is not None]
    if not todo:
        return "nothing to do"
    if not known:
        return f"{len(todo)} stages to build; no earlier run of this recipe to predict their time from"
    rest = f", and {len(todo) - len(known)} stages without an earlier result" if len(known) < len(todo) else ""
    return f"{len(todo)} stages to build, at most about {duration(sum(known))} by the last run{rest}"


def answers_table(compared: dict[str, Any]) -> Table:
    """Right answers of base and tuned model to held-out conversations, and how many of the tuned model's have the form asked for."""
    table = Table(box=None, pad_edge=False)
    for column in ("held-out answers", "base", "tuned", "difference", "95% interval", "in form", "number"):
        table.add_column(column, justify="left" if column == "held-out answers" else "right")
    for name, found in compared["groups"].items():
        low, high = found["interval"]
        table.add_row(
            name, f"{found['base']:.3f}", f"{found['tuned']:.3f}", f"{found['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}",
            "" if found["tuned_form"] is None else f"{found['tuned_form']:.3f}", f"{found['conversations']:,}",
        )  # fmt: skip
    return table


def score_table(evaluation: dict[str, Any]) -> Table:
    """The scores of a model beside chance."""
    table = Table(box=None, pad_edge=False)
    for column in ("benchmark", "accuracy", "standard error", "chance", "answer bits/byte", "items"):
        first = column == "benchmark"
        table.add_column(column, justify="left" if first else "right", overflow="fold", no_wrap=not first)
    for name, score in evaluation["benchmarks"].items():
        cells = [score.get(field) for field in ("acc", "acc_stderr", "chance", "answer_bits_per_byte")]
        shown = ["" if cell is None else f"{cell:.3f}" for cell in cells]
        table.add_row(name, *shown, f"{score['items']:,}")
    return table
