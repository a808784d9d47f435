"""What was found in sources before: never another thing than what is found anew."""

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
