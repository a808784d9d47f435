"""Ctrl-C, at whatever moment it comes."""

INTERRUPT_EXIT = 130
SENTENCE = "interrupted; the same command goes on from what was saved"


def was_interrupted(error: BaseException) -> bool:
    """Whether it came of Ctrl-C: a library that is being imported may make another error of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
