"""Ctrl-C, at whatever moment it comes."""

import traceback

INTERRUPT_EXIT = 130
SENTENCE = "interrupted; the same command goes on from what was saved"


def _is_of_an_import(error: BaseException) -> bool:
    """Whether it was raised while a module was imported, below whoever caught it."""
    return any(frame.f_code.co_name == "<module>" for frame, _ in traceback.walk_tb(error.__traceback__))


def was_interrupted(error: BaseException) -> bool:
    """Whether it is Ctrl-C or was made of it.

    A library that is being imported may make another error of it without a word. Anywhere else an error that comes while
    one is cleaning up after Ctrl-C is an error, and hides nothing.
    """
    at: BaseException | None = error
    seen = set[int]()
    while at is not None and id(at) not in seen:
        if isinstance(at, KeyboardInterrupt):
            return True
        seen.add(id(at))
        is_silent = not at.__suppress_context__ and _is_of_an_import(at)
        at = at.__cause__ or (at.__context__ if is_silent else None)
    return False
