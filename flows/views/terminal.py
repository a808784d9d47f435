"""What a person sees in the terminal: a line for each stage, bars for those that run, a table at the end."""

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from flows.runs.forecast import Forecast, round_down
from flows.runs.mixing import SourceShare
from flows.runs.plan import CACHED, RUN, Planned
from flows.runs.record import REPORT, Run
from flows.runs.record import RUN as RUN_FILE
from flows.runs.result import RunResult
from flows.runs.worth import WORTH
from flows.views.rows import (
    ANSWER_COLUMNS,
    SCORE_COLUMNS,
    Row,
    answer_rows,
    columns,
    fate_of,
    score_rows,
    text_difference_rows,
    worth_rows,
)
from model.errors import StageFailed
from tasks.engine.build import Outcome
from tasks.engine.progress import Progress as Amount
from tasks.engine.stage import Node
from tasks.engine.store import Store
from tasks.text.clean import how_to_loosen
from tasks.text.document_shards import ERRORS, SKIPPED
from tasks.text.listing import count_skipped, list_source
from tasks.text.sources import Source

_LINE_SECONDS = 30.0


class _Done(MofNCompleteColumn):
    """How much of how much; nothing while neither is known."""

    def render(self, task: Task) -> Text:
        """The text of the column."""
        return super().render(task) if task.total else Text("")


class TerminalDisplay:
    """Bars where there is a terminal; else one line when a stage ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("  {task.description:<18}"),
            BarColumn(bar_width=24),
            _Done(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=console.quiet or not console.is_terminal,
        )
        self.rows: dict[Node, Any] = {}
        self.began: dict[Node, float] = {}
        self.spoke: dict[Node, float] = {}

    def __enter__(self) -> "TerminalDisplay":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def started(self, node: Node) -> None:
        """Show a bar of unknown length."""
        self.began[node] = time.monotonic()
        self.rows[node] = self.bars.add_task(node.name, total=None, unit="", note="")

    def progressed(self, node: Node, progress: Amount) -> None:
        """Move the bar; without a terminal, print a line now and then."""
        now = time.monotonic()
        silent = now - self.spoke.get(node, self.began[node])
        if not self.console.is_terminal and (progress.total or progress.note) and silent > _LINE_SECONDS:
            self.spoke[node] = now
            share = (
                f"{100 * progress.done / progress.total:.0f}% of {progress.total:,} {progress.unit}, "
                if progress.total
                else ""
            )
            note = f", {progress.note}" if progress.note else ""
            self.console.print(
                f"  {node.name:<18} {share}{duration(now - self.began[node])}{note}", highlight=False
            )
        self.bars.update(
            self.rows[node],
            completed=progress.done,
            total=progress.total or None,
            unit=progress.unit,
            note=progress.note,
        )

    def finished(self, node: Node, outcome: Outcome) -> None:
        """Print the line of a finished stage."""
        self._remove(node)
        self.console.print(stage_line(node.name, outcome), highlight=False)
        lines = [*fate_lines(node.stage.name, outcome), *reading_lines(node, outcome), *damage_lines(outcome)]
        for line in lines:
            self.console.print(line, highlight=False)

    def failed(self, node: Node, error: BaseException) -> None:
        """Print the line of a stage that failed or was stopped."""
        self._remove(node)
        word = "failed" if isinstance(error, Exception) else "stopped"
        self.console.print(f"[red]✗[/] {node.name:<18} {word}", highlight=False)
        if isinstance(error, StageFailed) and error.retryable and node.stage.retries:
            # If it is tried again and comes to its end, this is all that a person hears of it.
            reason = str(error).removeprefix(f"{node.name}: ").split("\n")[0][:300]
            self.console.print(f"  {escape(reason)}", highlight=False)

    def _remove(self, node: Node) -> None:
        if node in self.rows:
            self.bars.remove_task(self.rows.pop(node))


def damage_lines(outcome: Outcome) -> list[str]:
    """Checkpoints that a training found damaged, and did without."""
    metrics = outcome.stored.manifest.metrics
    damaged, first = metrics.get("damaged_checkpoints"), metrics.get("resumed_from_step")
    if outcome.cached or not damaged:
        return []
    began = f"went on from step {first:,}" if first else "began anew"
    return [
        f"  [yellow]{began}: damaged checkpoints of {', '.join(f'step {step:,}' for step in damaged)} were removed[/]"
    ]


_BEGINNING = 100
_MUCH = 0.2
"""Share of the documents that are dropped from which a person should look."""


def fate_lines(stage: str, outcome: Outcome) -> list[str]:
    """What a stage that judges documents left of them, and what to do if that is little."""
    fate = fate_of(stage, outcome.stored.manifest.metrics)
    if fate is None:
        return []
    if fate.share <= _MUCH:
        return [f"  [dim]{escape(fate.sentence)}[/]"] if not outcome.cached or fate.dropped else []
    lines = [f"  [yellow]{escape(fate.sentence)}: {fate.share:.0%}[/]"]
    if fate.field:
        lines.append(f"  [yellow]by {escape(fate.field)}: {escape(how_to_loosen(fate.field))}[/]")
    return lines


def reading_lines(node: Node, outcome: Outcome) -> list[str]:
    """What could not be read of the text, and what was not; nothing if that is nothing."""
    if node.role != "read":
        return []
    metrics, out, lines = outcome.stored.manifest.metrics, outcome.stored.out, []
    errors, skipped = sum(metrics["errors"].values()), sum(metrics["skipped"].values())
    for field, count in metrics["text_fields"].items():
        lines.append(f"  the text of {count:,} rows is taken from their field {escape(repr(field))}")
    if errors:
        lost = f"{metrics['lost_rows']:,} rows, {metrics['lost_bytes']:,} bytes, {metrics['lost_share']:.2%}"
        where = escape(str(out / ERRORS))
        lines.append(f"  [yellow]{errors} files or rows cannot be used[/] ({lost}), named in {where}")
    if skipped:
        where = escape(str(out / SKIPPED))
        lines.append(
            f"  [yellow]{skipped} files are left out[/] ({_most(metrics['skipped'])}), named in {where}"
        )
    return lines


def _most(reasons: dict[str, int]) -> str:
    """The commonest reasons, each with its number."""
    most = sorted(reasons.items(), key=lambda item: -item[1])
    more = f"; {sum(count for _, count in most[4:])} for other reasons" if len(most) > 4 else ""
    return "; ".join(f"{count} {escape(reason)}" for reason, count in most[:4]) + more


def stage_line(stage: str, outcome: Outcome) -> str:
    """One line: how a stage got its result."""
    if outcome.cached:
        return f"[green]✓[/] {stage:<18} [dim]cached[/]"
    shards = ""
    if outcome.resolved.shard_keys is not None:
        shards = f", {outcome.shards_built} shards" + (
            f" ({outcome.shards_reused} reused)" if outcome.shards_reused else ""
        )
    return f"[green]✓[/] {stage:<18} built in {outcome.seconds:,.1f} s{shards}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(n_bytes: float) -> str:
    """Bytes in the unit that a person would use."""
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.0f} kB"


def plan_table(rows: list[Planned]) -> Table:
    """The table that `plan` prints."""
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "state", "about", "reason"):
        table.add_column(column, justify="right" if column == "about" else "left", no_wrap=column != "reason")
    colours = {CACHED: "green", RUN: "yellow"}
    for row in rows:
        state = f"[{colours.get(row.state, 'dim')}]{row.state}[/]"
        table.add_row(
            row.stage, state, "" if row.seconds is None else duration(row.seconds), escape(row.reason)
        )
    return table


def forecast_lines(rows: list[Planned], foretold: Forecast | None) -> list[str]:
    """What all of it will take; without a forecast, as far as earlier runs of the recipe tell."""
    todo = [row for row in rows if row.state != CACHED]
    if not todo:
        return ["nothing to do"]
    if foretold is None:
        known = [row.seconds for row in todo if row.seconds is not None]
        if not known:
            return [f"{len(todo)} stages to build; no earlier run of this recipe to predict their time from"]
        more = (
            f", and {len(todo) - len(known)} stages without an earlier result"
            if len(known) < len(todo)
            else ""
        )
        return [f"{len(todo)} stages to build, at most about {duration(sum(known))} by the last run{more}"]
    sizes = foretold.sizes
    told = (
        f"{len(todo)} stages to build: about {duration(foretold.total_seconds)}, {foretold.memory_bytes / 1e9:.1f} GB of memory, "
        f"{max(0.1, foretold.disk_bytes / 1e9):.1f} GB of disk"
    )
    tokens = f"{sizes.tokens:,.0f}" if sizes.is_counted else f"about {round_down(sizes.tokens):,}"
    counted = f"{size(sizes.text_bytes)} of text, {tokens} tokens, read {foretold.epochs:.1f} times"
    text = counted if sizes.tokens else "how much text there is, nobody can tell before it is read"
    return [told, text, *(f"[yellow]{escape(sentence)}[/]" for sentence in foretold.advice)]


def mixture_table(shares: list[SourceShare]) -> Table:
    """What each source gives to the training, for `plan`."""
    table = Table(box=None, pad_edge=False)
    for column in ("source", "text", "tokens", "share of the training", "read"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for one in shares:
        table.add_row(
            escape(one.name),
            size(one.bytes),
            f"about {round_down(one.tokens):,}",
            f"{one.share:.1%}",
            f"{one.epochs:.2g} times",
        )
    return table


def print_mixture(shares: list[SourceShare], warnings: list[str], console: Console) -> None:
    """The table of the mixture, if there is one to show, and what a person should think of."""
    if shares:
        console.print(mixture_table(shares))
    for sentence in warnings:
        console.print(f"[yellow]{escape(sentence)}[/]", highlight=False)


def left_out_lines(sources: Iterable[Source]) -> list[str]:
    """The files of the sources that are not read, by reason."""
    lines = []
    for source in sources:
        counts = count_skipped(list_source(source))
        if counts:
            lines.append(f"[yellow]{escape(source.path)}: left out are {_most(dict(counts))}[/]")
    return lines


def rows_table(rows: list[Row]) -> Table:
    """Rows as a table without lines: the first column to the left, the others to the right."""
    table = Table(box=None, pad_edge=False)
    for i, head in enumerate(rows[0]):
        table.add_column(head, justify="right" if i else "left", overflow="fold", no_wrap=bool(i))
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    return table


def print_run(run: Run, store: Store, console: Console) -> None:
    """A page on a run: how it ended, its stages, its figures, and where they lie. `--json` tells all of it."""
    record, stored = run.record, run.all_stored(store)
    console.print(
        f"[bold]{escape(run.name)}[/]  {run.status}, {record['flow']}, {record['created']}", highlight=False
    )
    if record.get("error"):
        console.print(f"[red]{escape(record['error'])}[/]", highlight=False)
    table = Table(box=None, pad_edge=False)
    for i, head in enumerate(("stage", "in this run", "seconds", "key")):
        table.add_column(head, justify="right" if i == 2 else "left", no_wrap=True)
    fates = []
    for name, entry in record["stages"].items():
        manifest = stored[name].manifest if name in stored else None
        fate = fate_of(manifest.stage, manifest.metrics) if manifest else None
        fates += [f"{name}: {fate.sentence}"] if fate else []
        how = ("cached" if entry["cached"] else "built") if manifest else "gone from the store"
        seconds = f"{manifest.seconds:,.1f}" if manifest else ""
        table.add_row(name, how, seconds, entry["key"][:12])
    console.print(table)
    for sentence in fates:
        console.print(escape(sentence), highlight=False)
    metrics = {name: result.manifest.metrics for name, result in stored.items()}
    train = run.node_with_role("train")
    if train in metrics:
        for line in training_lines_of(metrics[train]):
            console.print(line, highlight=False)
    if "evaluate_held_out" in metrics:
        held_out = metrics["evaluate_held_out"]
        console.print(
            f"held-out bits per byte [bold]{held_out['bits_per_byte']:.4f}[/] ({held_out['documents']:,} documents)",
            highlight=False,
        )
    benchmarks = metrics.get("evaluate_model", {}).get("benchmarks")
    if benchmarks:
        console.print(rows_table(columns(score_rows(benchmarks), *SCORE_COLUMNS)))
    if WORTH in record:
        print_worth(record[WORTH], console)
    for label, path in (
        ("model", stored["export_model"].out if "export_model" in stored else None),
        ("report", run.path / REPORT if (run.path / REPORT).is_file() else None),
        ("recipe", run.path / RUN_FILE),
    ):
        if path:
            console.print(f"{label:<6} {escape(str(path))}", highlight=False)


def print_worth(worth: dict[str, Any], console: Console) -> None:
    """How the texts differ, what that did to the models, and one sentence."""
    texts = worth["texts"]
    if texts:
        console.print(rows_table(text_difference_rows(texts)))
        for kind, documents in texts["examples"].items():
            for document in documents:
                beginning = " ".join(document["text"].split())[:_BEGINNING]
                console.print(
                    f"  {kind}: {escape(document['id'])}  [dim]{escape(beginning)}[/]", highlight=False
                )
    if worth["differences"]:
        console.print(rows_table(worth_rows(worth)))
    console.print(f"[bold]{escape(worth['sentence'])}[/]", highlight=False)


_FEW_STEPS, _MOVED, _ROSE = 20, 0.01, 0.005


def training_lines_of(figures: dict[str, Any]) -> list[str]:
    """What a training came to, and what of it a person should know: too few steps, a rate that moved nothing, a turn."""
    lines = [
        f"{figures['parameters'] / 1e6:,.2f} M parameters, {figures['tokens']:,} tokens ({figures['epochs']:g} epochs) in "
        f"{figures['steps']:,} steps, {figures['step_seconds']:,.0f} s"
    ]
    if figures["steps"] < _FEW_STEPS:
        lines.append(
            f"[yellow]only {figures['steps']} steps: a model hardly moves in so few; take smaller batches (tokens_per_batch), or "
            "more text[/]"
        )
    before, last = figures["validation_bits_per_byte_before"], figures["validation_bits_per_byte"]
    best, kept = figures["best_validation_bits_per_byte"], figures["kept_step"]
    if before and last:
        lines.append(f"held out, bits per byte while it trained: {before:.3f} before, {last:.3f} after")
        if max(abs(before - last), abs(before - (best or last))) < _MOVED * before:
            lines.append(
                "[yellow]that is next to nothing: for more, raise learning_rate, or train for longer[/]"
            )
    if best and last and last > best * (1 + _ROSE):
        at = figures["epochs"] * kept / figures["steps"]
        lines.append(
            f"[yellow]held out it turned at step {kept:,} (epoch {at:.1f}): {best:.3f} bits per byte there, {last:.3f} at the end. "
            f"What is exported is step {kept:,}; a training that ends there does the same in less time[/]"
        )
    return lines


def print_result(result: RunResult, console: Console) -> None:
    """Scores, held-out figures, and where model and report are."""
    console.print()
    if result.benchmarks:
        console.print(rows_table(columns(score_rows(result.benchmarks), *SCORE_COLUMNS)))
    answers, held_out = result.metrics("compare_answers"), result.metrics("evaluate_held_out")
    if answers:
        console.print(rows_table(columns(answer_rows(answers["groups"]), *ANSWER_COLUMNS)))
        asked = result.metrics("evaluate_answers")
        if asked and asked["too_long"]:
            console.print(
                f"{asked['too_long']:,} held-out conversations were not asked: their answers are longer than the context"
            )
    training = result.training
    seconds = (
        f"{training.stored.manifest.metrics['step_seconds']:.0f} seconds of training steps"
        if training
        else ""
    )
    if held_out:
        bits, documents = f"[bold]{held_out['bits_per_byte']:.4f}[/]", held_out["documents"]
        seconds = f"held-out bits per byte {bits} ({documents} documents), {seconds}"
    if seconds:
        console.print(f"\n{seconds}", highlight=False)
    for line in training_lines_of(training.stored.manifest.metrics) if training else ():
        console.print(line, highlight=False)
    for label in ("base_on_new_text", "base_on_old_text", "tuned_on_old_text"):
        measured = result.metrics(label)
        if measured:
            console.print(f"{label.replace('_', ' '):<18} {measured['bits_per_byte']:.4f}", highlight=False)
    for label, value in (("run", result.name), ("model", result.model), ("report", result.report)):
        if value:
            console.print(f"{label:<6} {escape(str(value))}", highlight=False)
