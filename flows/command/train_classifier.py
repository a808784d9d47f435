"""train-classifier: from examples of good and of bad text to a filter of one's own."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.command.options import AsJson, Quiet, make_app, make_console
from flows.command.say import say
from flows.views.terminal import rows_table
from model.errors import InputError
from tasks.text.classifier_training import train_classifier as train
from tasks.text.listing import files_of
from tasks.text.readers import read_file
from tasks.text.records import from_mapping
from tasks.text.sources import Source

app = make_app()
_MOST_BYTES = 100_000_000


@app.command()
def train_classifier(
    good: Annotated[
        str,
        typer.Argument(
            metavar="GOOD",
            help="A file, a folder or a glob of text as you want it, in any format that a recipe reads.",
            show_default=False,
        ),
    ],
    bad: Annotated[
        str,
        typer.Argument(metavar="BAD", help="The same of text as you do not want it.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File that is written.")] = Path(
        "quality.bin"
    ),
    held_out: Annotated[
        float,
        typer.Option(
            "--held-out", min=0.05, max=0.5, help="Share of the examples on which it is only measured."
        ),
    ] = 0.2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier that tells good text from bad, for clean.quality_classifier, and measure it."""
    console = make_console(to_stderr=as_json, quiet=quiet)
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output {str(output)!r}: there is no folder {str(output.absolute().parent)!r}")
    with console.status("reading the examples and training"):
        made = train(_texts(good), _texts(bad), output.absolute(), held_out)
    rows = [
        {
            "threshold": f"{at.threshold:g}",
            "of what it keeps is good": "" if at.precision is None else f"{at.precision:.1%}",
            "of the good it keeps": f"{at.recall:.1%}",
            "of the bad it drops": f"{at.dropped:.1%}",
        }
        for at in made.at
    ]
    told = " and ".join(f"{count:,} {label}" for label, count in made.trained.items())
    measured = " and ".join(f"{count:,} {label}" for label, count in made.held_out.items())
    console.print(f"trained on {told} texts; on {measured} that it did not see:", highlight=False)
    if made.in_both:
        console.print(f"[yellow]{made.in_both:,} texts are good and bad, and were left out[/]")
    console.print(rows_table(rows))
    console.print(
        f"\nin a recipe:\nclean:\n  quality_classifier: {{path: {escape(str(output))}, min_probability: 0.5}}",
        highlight=False,
    )
    if as_json:
        say(json.dumps(asdict(made), default=str))


def _texts(path: str) -> Iterator[str]:
    """The text of every document that can be read.

    Raises:
        InputError: if there is none.
    """
    source = Source(path=path)
    if source.dataset is not None:
        raise InputError(f"{path}: examples are files; write those of a dataset to a .jsonl file")
    n_texts = 0
    for name, file in files_of(source).by_name.items():
        for record in read_file(source, name, file, from_mapping, _MOST_BYTES):
            if record.text:
                n_texts += 1
                yield record.text
    if not n_texts:
        raise InputError(f"{path} holds no text that can be read")
