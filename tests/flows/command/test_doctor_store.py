"""What doctor says of the file system of a store; one that lacks something is made of this one, by taking that away."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.command import doctor
from flows.command.doctor import FAULT, OK


def told(store: Path) -> doctor.Finding:
    (finding,) = doctor._file_system(store)
    return finding


def test_a_local_folder_does_what_a_store_lives_on(tmp_path: Path):
    finding = told(tmp_path / "store")
    assert finding.state == OK
    assert list((tmp_path / "store").iterdir()) == []


def renames_over_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        real(source, target)

    monkeypatch.setattr(doctor.os, "rename", rename)


def locks_that(answer: Callable[[bool, bool], bool]) -> Callable[[pytest.MonkeyPatch], None]:
    @contextmanager
    def flock(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
        yield answer(shared, wait)

    return lambda monkeypatch: monkeypatch.setattr(doctor, "flock", flock)


def nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = doctor._RENAMES.replace('"seen"', '"hidden"').replace(".read_text()", ".name")
    monkeypatch.setattr(doctor, "_RENAMES", hidden)


def everybody_makes_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_RENAMES", doctor._RENAMES.replace("os.O_EXCL", "0"))


@pytest.mark.parametrize(
    ("without", "sentence"),
    [
        (renames_over_anything, "a folder was renamed over another one that is not empty"),
        (locks_that(lambda shared, wait: True), "a lock (flock) was held twice"),
        (locks_that(lambda shared, wait: wait), "a shared lock (flock) was not shared"),
        (nothing_is_seen, "a file that another process wrote is not seen"),
        (everybody_makes_the_same_file, "two processes made the same file exclusively"),
    ],
)
def test_what_a_file_system_lacks_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without: Callable[[pytest.MonkeyPatch], None],
    sentence: str,
):
    without(monkeypatch)
    finding = told(tmp_path)
    assert finding.state == FAULT
    assert sentence in finding.detail
    assert "NFS 4" in finding.mend


def test_a_store_that_can_be_no_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    finding = told(tmp_path / "file" / "store")
    assert (finding.state, "Not a directory" in finding.detail) == (FAULT, True)
