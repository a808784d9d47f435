"""Runs on disk."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.graphs import recipe_and_graph_of_run
from flows.recipe.recipe import Recipe
from flows.runs.base import model_folder
from flows.runs.inspect import find_garbage
from flows.runs.record import (
    FORMAT,
    RUN,
    Run,
    all_runs,
    find_run,
    previous_entries,
    start_ablation,
    start_run,
    unreadable_runs,
)
from model.errors import InputError
from model.files import write_record
from tasks.engine.store import Store

NAME = "20260101-000000-demo-abcd"
RECORD = {
    "recipe": {"name": "demo"},
    "flow": "pretrain",
    "status": "completed",
    "created_ns": 0,
    "stages": {},
    "claimed": {},
}


def write(store: Path, name: str = NAME, **fields: Any) -> Path:
    """A run that is there; returns its file."""
    folder = store / "runs" / name
    folder.mkdir(parents=True)
    write_record(folder / RUN, {"format": FORMAT, **RECORD, **fields})
    return folder / RUN


def test_what_only_measures_is_no_latest_and_is_not_counted_by_gc(tmp_path: Path):
    write(tmp_path, "20260101-000000-demo-aaaa")
    (tmp_path / "runs" / "latest").symlink_to("20260101-000000-demo-gone")
    for hour in range(3):
        write(tmp_path, f"20260102-0{hour}0000-demo-without-mixture-bbbb", flow="ablate", created_ns=hour + 1)
    store = Store(tmp_path)
    # The link points at a run that was removed.
    assert find_run(store, "latest").name == "20260101-000000-demo-aaaa"
    assert find_garbage(store, 1) == []
    measured = find_run(store, "demo-without-mixture")
    with pytest.raises(InputError, match="which only measures: it has no result of export_model"):
        measured.stored(store, "export_model")


def test_the_name_of_a_run_fits_into_a_file_name(tmp_path: Path):
    recipe = Recipe.model_validate({"ingest": {"sources": [{"path": "text"}]}})
    run = start_ablation(Store(tmp_path), recipe, f"clean.filters.{'x' * 300}/../[é", 2)
    assert len(run.name) < 200
    assert run.path.parent == tmp_path.resolve() / "runs"


def test_a_run_of_another_version_is_one_sentence(tmp_path: Path):
    write(tmp_path, stages={"ingest": {"key": "0" * 32}}).write_text(json.dumps({**RECORD, "format": 1}))
    store = Store(tmp_path)
    with pytest.raises(InputError, match="was written by another version of scratchlm: give another --store"):
        find_run(store, "demo-abcd")
    assert "another version" in unreadable_runs(store)[NAME]
    assert all_runs(store) == []
    assert previous_entries(store, "demo") == {}


@pytest.mark.parametrize("damage", ["empty", "torn", "flipped", "missing"])
def test_a_damaged_run_is_named_and_hides_no_other(tmp_path: Path, damage: str):
    whole, store = write(tmp_path, "20260102-000000-demo-0123"), Store(tmp_path)
    path = write(tmp_path, stages={"ingest": {"key": "0" * 32}})
    text = path.read_text()
    if damage == "missing":
        path.unlink()
    else:
        path.write_text(
            {"empty": "", "torn": text[:50], "flipped": text.replace("completed", "completee")}[damage]
        )
    assert [run.name for run in all_runs(store)] == [whole.parent.name]
    assert list(unreadable_runs(store)) == [NAME]
    assert "remove the folder" in unreadable_runs(store)[NAME]
    assert find_run(store, "demo-0123").status == "completed"


def test_a_run_works_for_as_long_as_its_process_holds_it(tmp_path: Path):
    run = Run(write(tmp_path, status="running").parent)
    run.hold()
    store = Store(tmp_path)
    assert all_runs(store)[0].status == "running"
    run.record = all_runs(store)[0].record
    assert run._held is not None
    run._held.close()
    assert all_runs(store)[0].status == "killed"
    run.hold()
    run.end("failed", "a fault")
    assert all_runs(store)[0].status == "failed"


def test_a_recipe_can_be_read_back_from_its_run(tmp_path: Path):
    recipe = Recipe.model_validate({"name": "own", "ingest": {"sources": [{"path": str(tmp_path)}]}})
    store = Store(tmp_path / "store")
    run = start_run(store, recipe)
    assert recipe_and_graph_of_run(run, store)[0] == recipe
    run.end("cancelled")


def test_a_run_is_found_by_its_recipe_and_a_folder_of_text_of_that_name_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    store = Store(tmp_path / "store")
    runs = []
    for _ in range(2):
        runs.append(
            start_run(store, Recipe.model_validate({"name": "own", "ingest": {"sources": [{"path": "own"}]}}))
        )
        runs[-1].end("cancelled")
    assert find_run(store, "own").name == runs[1].name
    with pytest.raises(InputError, match="export_model"):
        model_folder("own", store)
