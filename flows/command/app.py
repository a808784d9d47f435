"""The `scratchlm` command: which commands there are, and where each is.

The file of a command is imported when the command is called: so `--help` answers at once,
and the files themselves import at their top what they need.
"""

import importlib
from difflib import get_close_matches
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from flows.command.errors import exit_codes
from flows.command.say import say
from model.imports import uncollected

COMMANDS = {
    "init": (
        "init",
        "Write a recipe for your own text that fits its size, this machine and the time that you have.",
    ),
    "run": (
        "run",
        "Run a recipe: raw text to a benchmarked model. What is still valid is not computed again.",
    ),
    "finetune": ("run", "Make a base model answer: conversations to a tuned model, compared with its base."),
    "retrain": (
        "run",
        "Train on the text that is there now, and make the model the champion only if it is better.",
    ),
    "evaluate": ("run", "Benchmark a model that is there already: of a run, or in a Hugging Face folder."),
    "ablate": (
        "ablate",
        "Measure what a step of cleaning, a source or the mixture is worth, in bits per byte and beside the noise.",
    ),
    "mix": (
        "ablate",
        "Show how much of the training each source has, and with --try what that is worth.",
    ),
    "plan": (
        "stages",
        "Say for each stage whether it is cached, would run and why, or depends on one that would.",
    ),
    "estimate": (
        "estimate",
        "Say what the training of a recipe needs: parameters, FLOPs, memory of each rank and whether it fits, hours and money.",
    ),
    "task": ("stages", "Run one stage in this process, on cached inputs, without any server: for debugging."),
    "train-classifier": (
        "train_classifier",
        "Train a classifier that tells good text from bad, for clean.quality_classifier, and measure it.",
    ),
    "fields": ("recipes", "List the fields of a recipe with their kinds, defaults and units."),
    "show": ("store", "List the runs and champions of a store, or show one run or one result."),
    "diff": ("store", "Say how the second run differs from the first: recipe, code, inputs, counts, scores."),
    "why": ("ask", "Tell the fate of a document: which stage kept or dropped it, and why."),
    "browse": (
        "ask",
        "Show some documents of a run beside the values that decided about them, here and as a page.",
    ),
    "stats": ("ask", "Documents, bytes, lengths, languages, domains and duplicates of a run, by source."),
    "sql": ("ask", "Ask anything of a run's documents, in SQL (duckdb)."),
    "report": ("store", "Render the report of a run again and print its path."),
    "verify": ("store", "Check every result in the store against its manifest, by full hashes."),
    "gc": ("store", "Free what neither recent runs nor the champions' history need; says what, and asks."),
    "champion": ("champion", "The champion of a recipe: who it is, how it came to be, and the way back."),
    "generate": ("talk", "Let a model go on from one text, or from several at once."),
    "chat": (
        "talk",
        "Talk to a fine-tuned model: one line a message; Ctrl-C ends an answer, Ctrl-D the conversation.",
    ),
    "serve": (
        "serve",
        "Start a Prefect server with UI, the deployments of these recipes, and a worker, on this computer.",
    ),
    "join": ("join", "Train with another computer: be a node of the next training in a shared store."),
    "doctor": (
        "doctor",
        "Check Python, packages, torch, DeepSpeed, disk, memory, the store and the Prefect server, and say the mend.",
    ),
}
"""Command -> its file in this folder, and the first sentence of its help."""


def load_command(name: str) -> Any:
    """A command with its options, from its file."""
    with uncollected():
        module = importlib.import_module(f"flows.command.{COMMANDS[name][0]}")
    group = typer.main.get_group(module.app)
    return group.commands.get(name, group)


class _LazyGroup(TyperGroup):
    """Lists the commands without importing them."""

    listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order in which a person meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them; only its name and help while they are listed."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1]) if self.listing else load_command(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is meant; for a misspelt one a sentence that says which."""
        near = get_close_matches(args[0], COMMANDS, 1) if args else []
        if near and args[0] not in COMMANDS:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The list of commands."""
        self.listing = True
        super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Names that begin so."""
        self.listing = True
        return super().shell_complete(ctx, incomplete)

    def invoke(self, ctx: Any) -> Any:
        """Call the command; what a person can mend ends in one sentence and an exit code."""
        with exit_codes():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_LazyGroup,
    help="Build a language model from scratch, on your own text, and know what you got.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"scratchlm {version('scratchlm')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """What comes before the name of a command."""
