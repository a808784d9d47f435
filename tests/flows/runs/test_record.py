"""Runs on disk."""

import json
from pathlib import Path

import pytest

from flows.runs.record import RUN, all_runs, find_run, previous_entries
from model.errors import InputError
from tasks.engine.store import Store


def test_a_run_of_another_version_is_one_sentence(tmp_path: Path):
    folder = tmp_path / "runs" / "20260101-000000-demo-abcd"
    folder.mkdir(parents=True)
    record = {"recipe": {"name": "demo"}, "status": "completed", "stages": {"ingest": {"key": "0" * 32}}}
    (folder / RUN).write_text(json.dumps(record))
    for look in (lambda: all_runs(Store(tmp_path)), lambda: find_run(Store(tmp_path), "demo-abcd")):
        with pytest.raises(
            InputError, match="was written by another version of scratchlm: give another --store"
        ):
            look()
    assert previous_entries(Store(tmp_path), "demo") == {}
