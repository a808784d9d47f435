"""What a person sees in the terminal: a line for each stage, bars for those that run, a table at the end."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from flows.plan import CACHED, RUN, Planned
from tasks.build import Outcome
from tasks.progress import Progress as Amount


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
        """Move the bar."""
        self.bars.update(self.rows[stage], completed=progress.done, total=progress.total or None, unit=progress.unit)

    def finished(self, stage: str, outcome: Outcome) -> None:
        """Print the line of a finished stage."""
        self._remove(stage)
        self.console.print(stage_line(stage, outcome), highlight=False)

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
    for column in ("stage", "state", "reason"):
        table.add_column(column)
    colours = {CACHED: "green", RUN: "yellow"}
    for row in rows:
        table.add_row(row.stage, f"[{colours.get(row.state, 'dim')}]{row.state}[/]", row.reason)
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
