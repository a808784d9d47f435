"""How a command ends: 0, or one sentence and an exit code."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from flows.command.interrupted import INTERRUPT_EXIT, SENTENCE, was_interrupted
from flows.command.say import say
from model.errors import InputError, StageFailed

INPUT_EXIT, FAILURE_EXIT = 2, 1


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors into one sentence and an exit code: 2 for input, 1 for a failed stage, 130 for Ctrl-C."""
    try:
        with _interruption():
            yield
    except InputError as error:
        say(f"error: {error}", err=True)
        raise typer.Exit(INPUT_EXIT) from None
    except StageFailed as error:
        say(f"error: {error}", err=True)
        if error.log_path:
            say(
                f"what it printed is in {error.log_path}; to debug it: scratchlm task STAGE RECIPE --pdb",
                err=True,
            )
        elif error.log:
            say(error.log, err=True)
        raise typer.Exit(FAILURE_EXIT) from None
    except BrokenPipeError:
        # Whoever read what was printed has enough of it, as `head` has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        say(f"error: {error.strerror or error}{place}", err=True)
        raise typer.Exit(FAILURE_EXIT) from None


@contextmanager
def _interruption() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, typer.Exit | typer.Abort) or not was_interrupted(error):
            raise
        say(SENTENCE, err=True)
        raise typer.Exit(INTERRUPT_EXIT) from None
