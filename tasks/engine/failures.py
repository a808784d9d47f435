"""How the end of a build by an error is told: as a sentence, and whether another attempt may help."""

import errno
import traceback
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from model.errors import InputError, StageFailed
from tasks.engine.secrets import redact

_SENTENCE_CHARACTERS = 4_000
_LASTING = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_retryable(error: BaseException) -> bool:
    if isinstance(error, StageFailed):
        return error.retryable
    if isinstance(error, KeyboardInterrupt):
        return True
    if isinstance(error, _LASTING) or _is_full(error):
        return False
    return isinstance(error, OSError | MemoryError | BrokenProcessPool)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and _is_full(error):
        return (
            f"the disk is full ({error.filename or 'the store'}): free space and run the same command again"
        )
    if isinstance(error, BrokenProcessPool):
        return "a worker process was killed, perhaps for want of memory: lower machine.workers"
    return str(error) if isinstance(error, StageFailed | InputError) else f"{type(error).__name__}: {error}"


def describe(error: BaseException) -> dict[str, Any]:
    """error: the sentence, without secrets; kind: input or stage; retryable: whether another attempt may help."""
    return {
        "error": redact(_sentence(error))[:_SENTENCE_CHARACTERS],
        "kind": "input" if isinstance(error, InputError) else "stage",
        "retryable": _is_retryable(error),
    }


def describe_with_traceback(error: BaseException) -> dict[str, Any]:
    """The same of the error that is handled just now, and traceback, without secrets."""
    return {**describe(error), "traceback": redact(traceback.format_exc())}


def error_of(described: dict[str, Any], sentence: str) -> InputError | StageFailed:
    """The error that `describe` told of, with this sentence."""
    if described["kind"] == "input":
        return InputError(sentence)
    return StageFailed(sentence, retryable=described["retryable"])


def raise_described(described: dict[str, Any], stage: str) -> None:
    """Raise what `describe` told of a shard of a stage, with its position and its node, and how it is built alone."""
    alone = f"`scratchlm task {stage} RECIPE --shard {described['position']}` builds it here"
    sentence = f"shard {described['position']} on {described['host']}: {described['error']} ({alone})"
    raise error_of(described, sentence)
