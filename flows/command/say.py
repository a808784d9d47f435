"""Printing what others wrote: names of files, texts of models and recipes."""

import re

import typer

# C0 and C1 control characters but tab and newline, DEL, and what reverses or hides the writing of a line.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` with what would command the terminal spelt out, as \\x1b."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a line as it is, but for what would command the terminal."""
    typer.echo(printable(str(text)), err=err, nl=nl)
