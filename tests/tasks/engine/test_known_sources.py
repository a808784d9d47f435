"""What was found in sources before: never another thing than what is found anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.engine import code, known_sources
from tasks.engine.known_sources import KnownSources
from tests.conftest import ROOT

SOURCES = [path.read_text() for path in sorted((ROOT / "tasks" / "engine").glob("*.py"))]


def known_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, finder: Path = Path(code.__file__)
) -> KnownSources:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(folder / name))
    return KnownSources(finder)


def never(source: str) -> dict:
    raise AssertionError("it was looked for again")


def test_what_is_known_is_what_is_found_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = known_in(tmp_path, monkeypatch)
    found = [first.find(source, code._find) for source in SOURCES]
    assert found == [code._find(source) for source in SOURCES]
    first.save()
    second = known_in(tmp_path, monkeypatch)
    assert [second.find(source, never) for source in SOURCES] == found
    with pytest.raises(AssertionError, match="again"):
        second.find(SOURCES[0] + "\n", never)


def test_a_damaged_file_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = known_in(tmp_path, monkeypatch)
    digest = first.find(SOURCES[0], code._find)["computing"]
    first.save()
    text = first.path.read_text()
    for damaged in (text.replace(digest, "0" * len(digest)), text[: len(text) // 2], "[]", ""):
        first.path.write_text(damaged)
        assert known_in(tmp_path, monkeypatch).find(SOURCES[0], code._find)["computing"] == digest


def test_what_another_function_found_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    finder = tmp_path / "finder.py"
    finder.write_text("one")
    first = known_in(tmp_path, monkeypatch, finder)
    first.find("x", lambda source: {"found": 1})
    first.save()
    finder.write_text("two")
    assert known_in(tmp_path, monkeypatch, finder).find("x", lambda source: {"found": 2}) == {"found": 2}


def test_an_edit_of_the_function_that_runs_changes_nothing_for_the_edited_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    finder = tmp_path / "finder.py"
    finder.write_text("one")
    running = known_in(tmp_path, monkeypatch, finder)
    finder.write_text("two")
    running.find("x", lambda source: {"found": 1})
    running.save()
    assert known_in(tmp_path, monkeypatch, finder).find("x", lambda source: {"found": 2}) == {"found": 2}


def test_what_two_learn_at_once_is_known_to_a_third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, two = (known_in(tmp_path, monkeypatch) for _ in range(2))
    for number, known in enumerate((one, two)):
        known.find(str(number), lambda source: {"found": source})
    one.save()
    two.save()
    third = known_in(tmp_path, monkeypatch)
    assert [third.find(str(number), never) for number in (0, 1)] == [{"found": "0"}, {"found": "1"}]


def test_files_of_former_versions_go_when_nobody_used_them_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = known_in(tmp_path, monkeypatch)
    first.path.parent.mkdir()
    old, young = (first.path.with_name(f"sources-{name}.json") for name in ("old", "young"))
    for path in (old, young):
        path.write_text("{}")
    os.utime(old, (0, 0))
    first.find("x = 1", code._find)
    first.save()
    assert (old.exists(), young.exists(), first.path.exists()) == (False, True, True)


def test_a_second_command_parses_nothing(tmp_path: Path):
    """Both give the same digests; the second one ends if it parses."""
    program = """
import sys
from tasks.engine import code
def parse(source):
    sys.exit("parsed again")
if sys.argv[1] == "again":
    code._parse = parse
print(code.code_digests("tasks.text.clean"))
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    printed = [
        subprocess.run(
            [sys.executable, "-c", program, name], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for name in ("first", "again")
    ]
    assert printed[0] == printed[1]
    assert "tasks.text.clean" in printed[0]


def test_a_home_that_nobody_may_write_to_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "scratchlm").write_text("a file where the folder would be")
    first = known_in(tmp_path, monkeypatch)
    assert first.find("x = 1", code._find) == code._find("x = 1")
    first.save()


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known_sources, "_MOST", 3)
    first = known_in(tmp_path, monkeypatch)
    for i in range(5):
        first.find(str(i), lambda source: {"found": source})
    first.save()
    later = known_in(tmp_path, monkeypatch)
    assert [later.find(str(i), never)["found"] for i in (2, 3, 4)] == ["2", "3", "4"]
    assert later.find("0", lambda source: {"found": "anew"}) == {"found": "anew"}
