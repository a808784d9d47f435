"""Errors that a person can mend, told apart from those that a program made."""


class InputError(Exception):
    """Recipe, sources or data make the work impossible; the message names the mend. Exit code 2, never retried."""


class NotKnownYet(InputError):
    """What a plan would need to know is found out by the next run."""


class StageFailed(Exception):
    """A stage's process failed.

    Args:
        message: what happened, one sentence.
        retryable: whether the same work may go well when it is done again.
        log: the end of what the process printed.
        log_path: where all of it is.
    """

    def __init__(self, message: str, *, retryable: bool = False, log: str = "", log_path: str = "") -> None:
        super().__init__(message)
        self.retryable, self.log, self.log_path = retryable, log, log_path
