"""why, browse, stats, sql: asking a run about its documents."""

import json
import math
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.command.options import DEFAULT_STORE, AsJson, RunName, StoreFolder, make_app, make_console
from flows.command.say import say
from flows.runs.fates import COLUMNS, STATISTICS, Fates, samples
from flows.runs.record import find_run
from flows.runs.why import why as find_out
from flows.views.samples import render_samples
from tasks.engine.store import Store

app = make_app()
_MOST_CHARACTERS = 300


@app.command()
def why(
    run_name: RunName,
    document: Annotated[
        str,
        typer.Argument(
            help="Id of a document, what it calls itself, a part of its id that no other has, or some words of its text.",
            show_default=False,
        ),
    ],
    store: StoreFolder = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Tell the fate of a document: which stage kept or dropped it, and why."""
    opened = Store(store)
    verdicts = find_out(find_run(opened, run_name), opened, document)
    if as_json:
        say(json.dumps([vars(verdict) for verdict in verdicts]))
    for verdict in () if as_json else verdicts:
        say(f"{verdict.stage:<14} {verdict.outcome:<10} {verdict.detail}")


@app.command()
def browse(
    run_name: RunName = "latest",
    dropped_by: Annotated[
        str | None,
        typer.Option(
            "--dropped-by",
            metavar="STEP",
            help="Those that a step dropped, such as repetition or deduplicate.",
        ),
    ] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Those that were kept.")] = False,
    source: Annotated[str | None, typer.Option("--source", help="Those of a source.")] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="Those in a language, such as de.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, max=1_000, help="How many.")] = 20,
    store: StoreFolder = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show some documents of a run beside the values that decided about them, here and as a page."""
    opened = Store(store)
    run = find_run(opened, run_name)
    found = samples(Fates(run, opened), n, dropped_by=dropped_by, kept=kept, source=source, language=language)
    if as_json:
        say(json.dumps(found))
        return
    console = make_console()
    for row in found:
        console.print(f"[bold]{escape(row['id'])}[/]  {escape(_fate(row))}", highlight=False)
        beginning = " ".join(row["text"][: 2 * _MOST_CHARACTERS].split())[:_MOST_CHARACTERS]
        console.print(f"[dim]{escape(beginning)}[/]\n", highlight=False)
    options = {"dropped by": dropped_by, "kept": kept, "source": source, "language": language}
    chosen = ", ".join(f"{name} {value}" for name, value in options.items() if value)
    say(render_samples(run, found, f"documents ({chosen})" if chosen else "documents"))


def _fate(row: dict[str, Any]) -> str:
    about = f"{row['bytes']:,} bytes, {row['language'] or 'language unknown'}"
    if row["kept"]:
        return f"{row['side']}; {about}"
    decided = "" if row["measured"] is None else f" (measured {row['measured']:.4g}"
    decided += "" if not decided else ")" if row["allowed"] is None else f", allowed {row['allowed']:.4g})"
    return f"dropped by {row['step']}: {row['reason']}{decided}; {about}" if row["step"] else about


@app.command()
def stats(run_name: RunName = "latest", store: StoreFolder = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Documents, bytes, lengths, languages, domains and duplicates of a run, by source."""
    opened = Store(store)
    fates = Fates(find_run(opened, run_name), opened)
    tables = {head: fates.rows(query) for head, query in STATISTICS}
    if as_json:
        say(json.dumps(tables, default=str))
        return
    for head, rows in tables.items():
        if rows:
            _print_table(head, rows)


@app.command()
def sql(
    run_name: RunName,
    query: Annotated[
        str,
        typer.Argument(
            help="What is asked of the table documents, such as: select source, count(*) from documents where not kept "
            f"group by all. Its columns: {', '.join(COLUMNS)}. The table kept_text has id and text after cleaning.",
            show_default=False,
        ),
    ],
    n: Annotated[int, typer.Option("-n", min=1, help="Most rows that are printed.")] = 100,
    store: StoreFolder = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Ask anything of a run's documents, in SQL (duckdb)."""
    opened = Store(store)
    rows, n_rows = Fates(find_run(opened, run_name), opened).ask(query, None if as_json else n)
    if as_json:
        say(
            json.dumps(
                [{name: _json_value(value) for name, value in row.items()} for row in rows], default=str
            )
        )
        return
    if rows:
        _print_table("", rows)
    else:
        say("no rows")
    if n_rows > n:
        say(f"{n_rows - n:,} more rows: -n {n_rows}")


def _json_value(value: Any) -> Any:
    """JSON has no numbers that are not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_table(head: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=head or None, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(
            name.replace("_", " ") if head else name,
            justify="right" if isinstance(value, int | float) else "left",
        )
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    make_console().print(table, highlight=False)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(str(value) if len(str(value)) <= _MOST_CHARACTERS else f"{str(value)[:_MOST_CHARACTERS]} …")
