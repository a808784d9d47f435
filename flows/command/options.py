"""Options and arguments that more than one command has."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from flows.command.say import printable

RecipeFile = Annotated[
    Path, typer.Argument(help="A recipe; scratchlm init TEXT writes one.", show_default=False)
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        help="Override a field, e.g. train_model.tokens=1_000_000. Repeatable.",
    ),
]
MachineFile = Annotated[
    Path | None, typer.Option("--machine", help="YAML file with the fields of the section machine.")
]
StoreFolder = Annotated[
    Path, typer.Option("--store", envvar="SCRATCHLM_STORE", help="Folder of all results and runs.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one line of JSON last, and everything else to standard error.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print errors only, and with --json the line of JSON.")
]
Rehash = Annotated[
    bool, typer.Option("--rehash", help="Hash every source file again instead of trusting size and times.")
]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept",
        metavar="STAGE",
        help="Take its earlier result although code or libraries changed. Repeatable.",
    ),
]
RunName = Annotated[
    str, typer.Argument(help="A run: latest, or the beginning or end of its name.", show_default=False)
]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run (latest, or the beginning or end of its name), a recipe's name, or a Hugging Face folder.",
    ),
]
DEFAULT_STORE = Path("store")


def make_app() -> typer.Typer:
    """A group of commands in a file of its own; see `flows.command.app`."""
    return typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


class PrintableConsole(Console):
    """A console to which nothing but our own styles gives commands."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A string, of a line or of a cell of a table, as rich is about to show it."""
        return super().render_str(printable(text), **options)


def make_console(*, to_stderr: bool = False, quiet: bool = False) -> Console:
    """Where a person is shown what goes on."""
    return PrintableConsole(stderr=to_stderr, quiet=quiet, soft_wrap=True)
