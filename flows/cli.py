"""The `scratchlm` command."""

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from prefect.states import State
    from rich.console import Console

    from flows.recipe import AnyRecipe
    from flows.run import Place
    from flows.runs import Run
    from model.generate import Sampling
    from tasks.build import Outcome
    from tasks.stage import Node

INPUT_EXIT, FAILURE_EXIT, INTERRUPT_EXIT = 2, 1, 130

app = typer.Typer(
    help="Build a language model from scratch, on your own text, and know what you got.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, such as deployments/recipes/demo.yaml.", show_default=False)]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.FIELD=VALUE", help="Override a field, e.g. train_model.tokens=1_000_000. Repeatable."
    ),
]
MachineFile = Annotated[Path | None, typer.Option("--machine", help="YAML file with the fields of the section machine.")]
StoreFolder = Annotated[Path, typer.Option("--store", envvar="SCRATCHLM_STORE", help="Folder of all results and runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON last, and everything else to standard error.")]
Rehash = Annotated[bool, typer.Option("--rehash", help="Hash every source file again instead of trusting size and times.")]
RunName = Annotated[str, typer.Argument(help="A run: latest, or the beginning or end of its name.", show_default=False)]
DEFAULT_STORE = Path("store")


def _console(as_json: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=as_json, soft_wrap=True)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn errors into one sentence and an exit code: 2 for input, 1 for a failed stage, 130 for Ctrl-C."""
    from tasks.errors import InputError, StageFailed

    try:
        yield
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(INPUT_EXIT) from None
    except StageFailed as error:
        typer.echo(f"error: {error}", err=True)
        if error.log_path:
            typer.echo(f"what it printed is in {error.log_path}; to debug it: scratchlm task STAGE RECIPE --pdb", err=True)
        elif error.log:
            typer.echo(error.log, err=True)
        raise typer.Exit(FAILURE_EXIT) from None
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        typer.echo(f"error: {error.strerror or error}{place}", err=True)
        raise typer.Exit(FAILURE_EXIT) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(INTERRUPT_EXIT) from None


def _open(
    recipe_file: Path, assignments: list[str] | None, machine: Path | None, store: Path, rehash: bool
) -> "tuple[AnyRecipe, Place, list[Node]]":
    from flows.recipe import load_any_recipe
    from flows.run import open_place

    recipe = load_any_recipe(recipe_file, assignments, machine)
    place = open_place(recipe, store, rehash=rehash)
    return recipe, place, _graph(recipe, place)


def _graph(recipe: "AnyRecipe", place: "Place") -> "list[Node]":
    from flows import finetune, pretrain
    from flows.recipe import Recipe

    return pretrain.graph(recipe) if isinstance(recipe, Recipe) else finetune.graph(recipe, place.store)


def _open_recipe_or_run(
    recipe_file: Path, assignments: list[str] | None, machine: Path | None, store: Path
) -> "tuple[AnyRecipe, Place, list[Node]]":
    """Like `_open`; a name that is no file is that of a run, whose recipe and graph are taken."""
    from flows.runs import load_run, runs_folder
    from tasks.store.store import Store

    opened = Store(store)
    if recipe_file.exists() or not (runs_folder(opened) / recipe_file / "run.json").is_file():
        return _open(recipe_file, assignments, machine, store, False)
    from flows import retrain as retraining
    from flows.recipe import FinetuneRecipe, Recipe
    from flows.run import open_place

    record = load_run(runs_folder(opened) / recipe_file).record
    kind: type[AnyRecipe] = FinetuneRecipe if record.get("flow") == "finetune" else Recipe
    recipe = kind.model_validate({**record["recipe"], "machine": record["machine"]})
    place = open_place(recipe, store)
    former = load_run(runs_folder(opened) / record["champion"]) if record.get("champion") else None
    if isinstance(recipe, Recipe) and record.get("flow") == "retrain":
        return recipe, place, retraining.graph(recipe, former)
    return recipe, place, _graph(recipe, place)


@contextmanager
def _profiled() -> Iterator[None]:
    """Print the functions that take most time, to standard error."""
    import cProfile
    import pstats

    profiler = cProfile.Profile()
    with profiler:
        yield
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(30)


def _run_flow(name: str, console: "Console", parameters: dict[str, Any]) -> "tuple[State[Any], Run | None, dict[str, Outcome]]":
    """Run a flow from this process, on a server that is there or its own, and show it in the terminal."""
    from flows.run import display
    from flows.server import prefect_server
    from flows.terminal import TerminalDisplay

    with prefect_server(), TerminalDisplay(console) as shown:
        from flows import flow

        token = display.set(shown)
        try:
            return flow.run_here(getattr(flow, name), **parameters)
        finally:
            display.reset(token)


Accept = Annotated[
    list[str] | None,
    typer.Option("--accept", metavar="STAGE", help="Take its earlier result although code or libraries changed. Repeatable."),
]


@app.command()
def run(
    recipe_file: RecipeFile,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    rehash: Rehash = False,
    accept: Accept = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: raw text to a benchmarked model. What is still valid is not computed again."""
    with _exit_codes():
        from flows.recipe import load_recipe

        load_recipe(recipe_file, assignments, machine)
        _run_recipe("pretrain", recipe_file, assignments, machine, store, rehash, accept, as_json)


@app.command()
def finetune(
    recipe_file: RecipeFile,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    rehash: Rehash = False,
    accept: Accept = None,
    as_json: AsJson = False,
) -> None:
    """Make a base model answer: conversations to a tuned model, compared with its base."""
    with _exit_codes():
        from flows.recipe import FinetuneRecipe, load_any_recipe
        from tasks.errors import InputError

        if not isinstance(load_any_recipe(recipe_file, assignments, machine), FinetuneRecipe):
            raise InputError(
                f"{recipe_file} has no base, so it is a recipe for training from scratch: use `scratchlm run`, or add base"
            )
        _run_recipe("finetune", recipe_file, assignments, machine, store, rehash, accept, as_json)


def _run_recipe(
    flow: str, recipe_file: Path, assignments: list[str] | None, machine: Path | None, store: Path, rehash: bool,
    accept: list[str] | None, as_json: bool,
) -> None:  # fmt: skip
    """Run a recipe by its flow, or show the earlier run if nothing at all changed."""
    recipe, place, nodes = _open(recipe_file, assignments, machine, store, rehash)
    console = _console(as_json)
    from flows.recipe import Recipe
    from tasks.benchmarks import prepare_benchmarks
    from tasks.errors import InputError

    unknown = sorted(set(accept or ()) - {node.name for node in nodes})
    if unknown:
        raise InputError(f"--accept {unknown[0]}: there is no such stage: stages are {', '.join(n.name for n in nodes)}")

    prepare_benchmarks(recipe.evaluate_model)
    from flows.plan import plan as make_plan
    from flows.run import cached_outcomes
    from flows.runs import previous_entries, start_run, unchanged_run
    from flows.terminal import stage_line
    from tasks.train_model import TrainModelConfig, check_machine

    rows = make_plan(nodes, place.store, place.sources, previous_entries(place.store, recipe.name))
    waiting = [row.stage for row in rows if row.state != "cached"]
    outcomes = None
    if not waiting and not os.environ.get("PREFECT_API_URL"):
        outcomes = cached_outcomes(nodes, place)
    if outcomes is not None:
        known = unchanged_run(place.store, recipe, outcomes, flow)
        made = known or start_run(place.store, recipe, flow)
        for stage, outcome in outcomes.items():
            console.print(stage_line(stage, outcome), highlight=False)
            if not known:
                made.note(stage, outcome)
        if not known:
            made.end("completed")
    else:
        console.print(f"[bold]{recipe.name}[/]: {len(rows) - len(waiting)} of {len(rows)} stages are cached", highlight=False)
        if "train_model" in waiting and isinstance(recipe, Recipe):
            check_machine(TrainModelConfig(model=recipe.model, train=recipe.train_model), place.machine.training())
        given = {"recipe": recipe, "store": str(place.store.root), "rehash": rehash, "accept": accept}
        _, ran, outcomes = _run_flow(flow, console, given)
        assert ran is not None
        made = ran
    _finish(made, outcomes, place, console, as_json)


def _finish(made: "Run", outcomes: "dict[str, Outcome]", place: "Place", console: "Console", as_json: bool) -> None:
    """Render the report, print scores and its path, and the line of JSON."""
    from flows.runs import REPORT
    from flows.terminal import answers_table, score_table

    report = made.path / REPORT
    if not report.is_file():
        from tasks.report import render_report

        report = render_report(made.path, place.store)
    console.print()
    console.print(score_table(outcomes["evaluate_model"].stored.manifest.metrics))
    training = outcomes[_trained(outcomes)].stored.manifest.metrics
    seconds = f"{training['step_seconds']:.0f} seconds of training steps"
    if "compare_answers" in outcomes:
        console.print(answers_table(outcomes["compare_answers"].stored.manifest.metrics))
        console.print(f"\n{seconds}", highlight=False)
    else:
        held_out = outcomes["evaluate_held_out"].stored.manifest.metrics
        console.print(
            f"\nheld-out bits per byte [bold]{held_out['bits_per_byte']:.4f}[/] ({held_out['documents']} documents), {seconds}",
            highlight=False,
        )
        for label in ("base_on_new_text", "base_on_old_text", "tuned_on_old_text"):
            if label in outcomes:
                console.print(
                    f"{label.replace('_', ' '):<18} {outcomes[label].stored.manifest.metrics['bits_per_byte']:.4f}",
                    highlight=False,
                )
    console.print(f"run    {made.name}", highlight=False)
    console.print(f"model  {outcomes['export_model'].stored.out}", highlight=False)
    console.print(f"report {report}", highlight=False)
    if as_json:
        typer.echo(json.dumps(_summary(made, outcomes, report)))


def _trained(outcomes: "dict[str, Outcome]") -> str:
    return next(name for name in ("finetune_model", "adapt_model", "train_model") if name in outcomes)


def _summary(made: "Run", outcomes: "dict[str, Outcome]", report: Path) -> dict[str, Any]:
    artifacts = {
        stage: {
            "key": outcome.stored.manifest.key,
            "digest": outcome.stored.manifest.digest,
            "path": str(outcome.stored.out),
            "cached": outcome.cached,
            "shards": {"built": outcome.shards_built, "reused": outcome.shards_reused},
        }
        for stage, outcome in outcomes.items()
    }
    trained = outcomes[_trained(outcomes)]
    training = trained.stored.manifest.metrics
    evaluation = outcomes["evaluate_model"].stored.manifest.metrics
    if "compare_answers" in outcomes:
        measured: dict[str, Any] = {"answers": outcomes["compare_answers"].stored.manifest.metrics["groups"]}
    else:
        measured = {"bits_per_byte": outcomes["evaluate_held_out"].stored.manifest.metrics["bits_per_byte"]}
    return {
        "run": made.name,
        "artifacts": artifacts,
        "results": {
            **measured,
            "step_seconds": training["step_seconds"],
            "tokens": training["tokens"],
            "parameters": training["parameters"],
            "benchmarks": evaluation["benchmarks"],
        },
        "resumed_from_step": None if trained.cached else training["resumed_from_step"],
        "report": str(report),
    }


@app.command()
def retrain(
    recipe_file: RecipeFile,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    rehash: Rehash = False,
    force: Annotated[bool, typer.Option("--force", help="Train although there is too little new text.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train on the text that is there now, and make the model the champion only if it is better."""
    with _exit_codes():
        from flows.recipe import load_recipe

        recipe, console = load_recipe(recipe_file, assignments, machine), _console(as_json)
        given = {"recipe": recipe, "store": str(store.absolute()), "rehash": rehash, "force": force}
        state, made, _ = _run_flow("retrain", console, given)
        console.print(f"[bold]{state.name}[/]: {state.message}", highlight=False)
        if as_json:
            typer.echo(json.dumps({"outcome": state.name, "reason": state.message, "run": made.name if made else None}))


@app.command()
def show(
    what: Annotated[
        str | None, typer.Argument(help="A run, or the beginning of a key; the list of runs if empty.", show_default=False)
    ] = None,
    store: StoreFolder = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """List the runs and champions of a store, or show one run or one result."""
    with _exit_codes():
        from flows.inspect_store import all_runs, show_artifact, show_run
        from flows.runs import find_run
        from tasks.errors import InputError
        from tasks.promote_model import read_champions
        from tasks.store.store import Store

        opened = Store(store)
        if what is None:
            names = [path.stem for path in sorted((opened.root / "champions").glob("*.json"))]
            champions = {read_champions(opened, name).champion for name in names}
            runs = [
                {"run": run.name, "status": run.record["status"], "flow": run.record.get("flow", "pretrain"),
                 "champion": run.name in champions}
                for run in all_runs(opened)
            ]  # fmt: skip
            if as_json:
                typer.echo(json.dumps(runs))
            for row in () if as_json else runs:
                mark = "  champion" if row["champion"] else ""
                typer.echo(f"{row['run']:<40} {row['flow']:<10} {row['status']}{mark}")
            return
        try:
            shown = show_run(find_run(opened, what), opened)
        except InputError as error:
            try:
                shown = show_artifact(opened, what)
            except InputError as other:
                raise InputError(f"{error}; {other}") from None
        typer.echo(json.dumps(shown, indent=None if as_json else 1))


@app.command()
def diff(first: RunName, second: RunName, store: StoreFolder = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Say how the second run differs from the first: recipe, code, inputs, counts, scores."""
    with _exit_codes():
        from flows.inspect_store import diff_runs
        from flows.runs import find_run
        from tasks.store.store import Store

        opened = Store(store)
        lines = diff_runs(find_run(opened, first), find_run(opened, second), opened)
        if as_json:
            typer.echo(json.dumps(lines))
        for line in () if as_json else lines or ["no difference"]:
            typer.echo(line)


@app.command()
def verify(store: StoreFolder = DEFAULT_STORE) -> None:
    """Check every result in the store against its manifest, by full hashes."""
    with _exit_codes():
        from flows.inspect_store import verify_store
        from tasks.store.store import Store

        faults = 0
        for fault in verify_store(Store(store)):
            faults += 1
            typer.echo(fault)
        typer.echo(f"{faults} faults" if faults else "all results are what their manifests say")
        if faults:
            raise typer.Exit(FAILURE_EXIT)


@app.command()
def gc(
    store: StoreFolder = DEFAULT_STORE,
    keep_runs: Annotated[int, typer.Option("--keep-runs", min=1, help="Newest runs whose results stay.")] = 10,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Free what neither recent runs nor the champions' history need; says what, and asks."""
    with _exit_codes():
        from flows.inspect_store import find_garbage, remove
        from tasks.errors import InputError
        from tasks.store.store import Store

        opened = Store(store)
        garbage = find_garbage(opened, keep_runs)
        for item in garbage:
            typer.echo(f"{item.bytes / 1e6:10.1f} MB  {item.path.relative_to(opened.root)}")
        typer.echo(f"{sum(item.bytes for item in garbage) / 1e6:10.1f} MB in {len(garbage)} folders")
        if not garbage:
            return
        if not yes and not sys.stdin.isatty():
            raise InputError("nothing was removed: there is nobody to ask; give --yes")
        if yes or typer.confirm("remove them?"):
            remove(garbage, opened)
            typer.echo("removed")


champion_app = typer.Typer(
    help="The champion of a recipe: who it is, how it came to be, and the way back.", no_args_is_help=True
)
app.add_typer(champion_app, name="champion")
ChampionName = Annotated[
    str | None, typer.Argument(help="Name of the recipe; not needed if there is one only.", show_default=False)
]


def _champion_name(store: Path, name: str | None) -> str:
    """The name that is given, or the only one that has a champion."""
    from tasks.errors import InputError

    names = sorted(path.stem for path in (store / "champions").glob("*.json"))
    if name in names or (name is None and len(names) == 1):
        return name or names[0]
    known = f"names are {', '.join(names)}" if names else "there is none yet: `scratchlm retrain RECIPE` makes the first one"
    raise InputError(f"no champion of {name!r} in {store}: {known}" if name else f"which champion? {known}")


@champion_app.command("show")
def champion_show(name: ChampionName = None, store: StoreFolder = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Print the run that is the champion, and the folder of its model."""
    with _exit_codes():
        from flows.runs import load_run, runs_folder
        from tasks.promote_model import read_champions
        from tasks.store.store import Store

        opened = Store(store)
        champion = read_champions(opened, _champion_name(opened.root, name)).champion
        assert champion is not None
        model = load_run(runs_folder(opened) / champion).stored(opened, "export_model").out
        typer.echo(json.dumps({"run": champion, "model": str(model)}) if as_json else f"{champion}\n{model}")


@champion_app.command("history")
def champion_history(name: ChampionName = None, store: StoreFolder = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Print every promotion, refusal and rollback, the oldest first."""
    with _exit_codes():
        from tasks.promote_model import read_champions
        from tasks.store.store import Store

        opened = Store(store)
        events = read_champions(opened, _champion_name(opened.root, name)).history
        if as_json:
            typer.echo(json.dumps([event.model_dump() for event in events]))
        for event in () if as_json else events:
            typer.echo(f"{event.at}  {event.event:<11}  {event.run}  by {event.by}: {event.reason}")


@champion_app.command("rollback")
def champion_rollback(
    name: ChampionName = None,
    store: StoreFolder = DEFAULT_STORE,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history.")] = "",
) -> None:
    """Make the champion before this one the champion again."""
    with _exit_codes():
        from tasks.promote_model import roll_back
        from tasks.store.store import Store

        opened = Store(store)
        champion = roll_back(opened, _champion_name(opened.root, name), reason or "no reason given").champion
        typer.echo(f"the champion is {champion}")


@app.command()
def serve(
    recipe_files: Annotated[list[Path], typer.Argument(help="Recipes, one deployment each.", show_default=False)],
    store: StoreFolder = DEFAULT_STORE,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the server, on 127.0.0.1.")] = 4200,
    cron: Annotated[str | None, typer.Option("--cron", help='Retrain at these times, such as "0 3 * * *".')] = None,
    every: Annotated[str | None, typer.Option("--every", help="Retrain at this interval, such as 12h.")] = None,
    rrule: Annotated[str | None, typer.Option("--rrule", help='Retrain by a rule, such as "FREQ=WEEKLY;BYDAY=SU".')] = None,
    timezone: Annotated[str, typer.Option("--timezone", help="Time zone of the schedule.")] = "UTC",
) -> None:
    """Start a Prefect server with UI, the deployments of these recipes, and a worker, on this computer."""
    with _exit_codes():
        from flows.recipe import load_any_recipe
        from flows.serve import make_schedule
        from flows.serve import serve as serve_until_stopped

        recipes = [load_any_recipe(path) for path in recipe_files]
        console = _console()
        schedule = partial(make_schedule, cron, every, rrule, timezone)
        serve_until_stopped(recipes, store, port, schedule, lambda line: console.print(line, highlight=False))


@app.command()
def plan(
    recipe_file: RecipeFile,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    rehash: Rehash = False,
    as_json: AsJson = False,
) -> None:
    """Say for each stage whether it is cached, would run and why, or depends on one that would. Builds nothing."""
    with _exit_codes():
        recipe, place, nodes = _open(recipe_file, assignments, machine, store, rehash)
        from flows.plan import plan as make_plan
        from flows.runs import previous_entries

        rows = make_plan(nodes, place.store, place.sources, previous_entries(place.store, recipe.name))
        if as_json:
            typer.echo(json.dumps([row.as_json() for row in rows]))
            return
        from flows.terminal import plan_table, predict_line

        console = _console()
        console.print(plan_table(rows))
        console.print(predict_line(rows), highlight=False)


@app.command()
def task(
    name: Annotated[str, typer.Argument(help="A stage, such as clean or train_model.", show_default=False)],
    recipe_file: Annotated[Path, typer.Argument(help="A recipe, or the name of a run whose stage it is.", show_default=False)],
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    pdb: Annotated[bool, typer.Option("--pdb", help="Stop in the debugger where the stage fails.")] = False,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="Build this many shards of a map stage and publish no whole.")
    ] = None,
    shard: Annotated[
        int | None, typer.Option("--shard", min=0, help="Build the shard at this position only, counted from 0.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Copy the files of the result, or of these shards, to a new folder."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Print where the time goes (cProfile).")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build it although its result is there.")] = False,
) -> None:
    """Run one stage in this process, on cached inputs, without any server: for debugging."""
    with _exit_codes():
        recipe, place, nodes = _open_recipe_or_run(recipe_file, assignments, machine, store)
        from tasks.benchmarks import prepare_benchmarks

        prepare_benchmarks(recipe.evaluate_model)
        from flows.run import run_task
        from tasks.errors import InputError

        try:
            with _profiled() if profile else nullcontext():
                outcome = run_task(name, nodes, place, first_shards=sample, shard=shard, force=force, out=out)
        except Exception as error:
            if pdb and not isinstance(error, InputError):
                import pdb as debugger

                traceback.print_exc()
                debugger.post_mortem(sys.exc_info()[2])
                raise typer.Exit(FAILURE_EXIT) from None
            raise
        if outcome is None:
            what = f"shard {shard}" if shard is not None else f"at most {sample} shards"
            typer.echo(f"{name}: {what} built; the whole was not published")
        else:
            from flows.terminal import stage_line

            _console().print(stage_line(name, outcome), highlight=False)
            typer.echo(json.dumps(outcome.stored.manifest.metrics, indent=1))
            typer.echo(outcome.stored.out)
        if out:
            typer.echo(out)


@app.command()
def why(
    run_name: RunName,
    document: Annotated[str, typer.Argument(help="Id of a document, or a part of it that no other has.", show_default=False)],
    store: StoreFolder = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Tell the fate of a document: which stage kept or dropped it, and why."""
    with _exit_codes():
        from flows.runs import find_run
        from flows.why import why as find_out
        from tasks.store.store import Store

        opened = Store(store)
        verdicts = find_out(find_run(opened, run_name), opened, document)
        if as_json:
            typer.echo(json.dumps([vars(verdict) for verdict in verdicts]))
        for verdict in () if as_json else verdicts:
            typer.echo(f"{verdict.stage:<14} {verdict.outcome:<10} {verdict.detail}")


@app.command()
def report(run_name: RunName = "latest", store: StoreFolder = DEFAULT_STORE) -> None:
    """Render the report of a run again and print its path."""
    with _exit_codes():
        from flows.runs import find_run
        from tasks.report import render_report
        from tasks.store.store import Store

        opened = Store(store)
        typer.echo(render_report(find_run(opened, run_name).path, opened))


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run (latest, or the beginning or end of its name), a recipe's name, or a Hugging Face folder."
    ),
]
MaxTokens = Annotated[int, typer.Option("--tokens", min=1, help="Most tokens to write.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")]
TopK = Annotated[int, typer.Option(min=0, help="Choose among this many likeliest tokens; 0 among all.")]
TopP = Annotated[
    float, typer.Option(help="Choose among the likeliest tokens with this probability together; above 0, at most 1.")
]
MinP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Least share of the likeliest token's probability.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1: tokens that are there already become rarer.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="Stop before this text. Repeatable.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the choice.")]
AdapterFolder = Annotated[
    Path | None, typer.Option("--adapter", metavar="DIR", help="A LoRA or DoRA adapter for this very model.")
]


def _sampling(**values: Any) -> "Sampling":
    from pydantic import ValidationError

    from flows.recipe import explain
    from model.generate import Sampling
    from tasks.errors import InputError

    try:
        return Sampling.model_validate({**values, "stop": values["stop"] or ()})
    except ValidationError as error:
        raise InputError(explain(error, "the options", kind=Sampling)) from None


@app.command()
def generate(
    model: ModelName,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts to go on from.")] = None,
    store: StoreFolder = DEFAULT_STORE,
    tokens: MaxTokens = 100,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    adapter: AdapterFolder = None,
    as_json: AsJson = False,
) -> None:
    """Let a model go on from one text, or from several at once."""
    with _exit_codes():
        from flows.talk import load_speaker, model_folder
        from tasks.store.store import Store

        sampling = _sampling(
            max_tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, stop=stop, seed=seed,
        )  # fmt: skip
        speaker = load_speaker(model_folder(model, Store(store)), adapter)
        from model.generate import complete, generate_text

        texts = prompts or [""]
        ids = [speaker.encode(text) for text in texts]
        if len(texts) == 1 and not as_json:
            typer.echo(texts[0], nl=False)
            for (piece,) in generate_text(speaker.model, speaker.tokenizer, ids, sampling, speaker.ends):
                typer.echo(piece, nl=False)
                sys.stdout.flush()
            typer.echo()
            return
        answers = complete(speaker.model, speaker.tokenizer, ids, sampling, speaker.ends)
        if as_json:
            typer.echo(json.dumps([{"prompt": text, "text": answer} for text, answer in zip(texts, answers, strict=True)]))
        for text, answer in () if as_json else zip(texts, answers, strict=True):
            typer.echo(f"{text}{answer}\n")


@app.command()
def chat(
    model: ModelName,
    store: StoreFolder = DEFAULT_STORE,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told before the conversation.")] = None,
    tokens: MaxTokens = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    adapter: AdapterFolder = None,
) -> None:
    """Talk to a fine-tuned model: one line a message; Ctrl-C ends an answer, Ctrl-D the conversation."""
    with _exit_codes():
        from flows.talk import load_speaker, model_folder
        from tasks.errors import InputError
        from tasks.store.store import Store

        sampling = _sampling(
            max_tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, stop=stop, seed=seed,
        )  # fmt: skip
        speaker = load_speaker(model_folder(model, Store(store)), adapter)
        _ = speaker.template
        messages = [{"role": "system", "content": system}] if system else []
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            if not line:
                continue
            messages.append({"role": "user", "content": line})
            n_before, answer = len(messages), ""
            try:
                for piece in speaker.answer(messages, sampling):
                    answer += piece
                    typer.echo(piece, nl=False)
                    sys.stdout.flush()
            except InputError as error:
                typer.echo(f"error: {error}", err=True)
                messages.pop()
                continue
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
            typer.echo()
            if len(messages) < n_before:
                typer.echo("(the beginning of the conversation no longer fits and is forgotten)", err=True)
            messages.append({"role": "assistant", "content": answer.strip() or "…"})


@app.command()
def fields(
    section: Annotated[
        str | None, typer.Argument(help="A section, such as train_model; all if empty.", show_default=False)
    ] = None,
) -> None:
    """List the fields of a recipe with their kinds, defaults and units."""
    with _exit_codes():
        from flows.fields import list_fields

        for field in list_fields(section):
            typer.echo(f"{field.name}  ({field.kind}; default {field.default})\n    {field.description}")


@app.command()
def doctor(store: StoreFolder = DEFAULT_STORE) -> None:
    """Check Python, packages, compiler, torch, DeepSpeed, disk, memory and the Prefect server, and say how to mend what is missing."""
    with _exit_codes():
        from flows.doctor import FAULT, OK, examine

        marks = {OK: "[green]✓[/]", FAULT: "[red]✗[/]"}
        console, faults = _console(), 0
        for finding in examine(store):
            faults += finding.state == FAULT
            mend = f"\n    mend: {finding.mend}" if finding.mend else ""
            console.print(f"{marks.get(finding.state, '[yellow]![/]')} {finding.what}: {finding.detail}{mend}", highlight=False)
        if faults:
            raise typer.Exit(FAILURE_EXIT)


def main() -> None:
    """Entry point of the command."""
    app()
