"""Ctrl-C at whatever moment, and errors that only look like it."""

from pathlib import Path

import pytest
import typer

from flows.command.errors import exit_codes
from flows.command.interrupted import SENTENCE, was_interrupted
from model.errors import InputError


def chained(error: BaseException, cause: BaseException) -> BaseException:
    """An error that was raised from another."""
    error.__cause__ = cause
    return error


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and sentence of a command that ends with an error."""
    with pytest.raises(typer.Exit) as exit_of, exit_codes():
        raise error
    return exit_of.value.exit_code, capsys.readouterr().err


@pytest.mark.parametrize("kind", [RuntimeError, OSError, InputError])
def test_what_a_library_makes_of_an_interruption_is_one(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
):
    code, told = ended(chained(kind("cannot load"), KeyboardInterrupt()), capsys)
    assert (code, told.strip()) == (130, SENTENCE)


def test_an_error_of_cleaning_up_after_it_is_an_error():
    def clean_up(*, silently: bool) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if silently:
                raise ValueError("nothing was saved") from None
            raise ValueError("nothing was saved")  # noqa: B904

    for silently in (False, True):
        with pytest.raises(ValueError, match="nothing was saved"), exit_codes():
            clean_up(silently=silently)


def test_of_an_import_it_is_one_though_nobody_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "interrupted_library.py").write_text(
        "try:\n    raise KeyboardInterrupt\nexcept BaseException:\n    raise RuntimeError('broken')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError) as failure:
        __import__("interrupted_library")
    assert was_interrupted(failure.value)


def test_errors_in_a_circle_are_followed_once():
    one, two = ValueError("one"), ValueError("two")
    chained(one, chained(two, one))
    assert not was_interrupted(one)
