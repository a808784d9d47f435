"""The laws of the store, on stages that write ten bytes, each build in processes of its own."""

import json
import os
import signal
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest

from model.errors import StageFailed
from tasks.engine import child
from tests.conftest import Toy
from tests.waiting import HANGING_SECONDS, assert_no_process_of, wait_until


def keys(notes: dict) -> dict[str, str]:
    return {stage: note["key"] for stage, note in notes.items()}


def states(rows: dict) -> dict[str, str]:
    return {stage: row["state"] for stage, row in rows.items()}


ALL_CACHED = {"numbers": "cached", "double": "cached", "total": "cached", "label": "cached"}


def test_the_same_inputs_give_the_same_keys_anywhere(toy: Toy, tmp_path: Path):
    first = toy.run()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    second = toy.run(
        store=elsewhere / "store", env={"PYTHONHASHSEED": "7", "SOME_VARIABLE": "x"}, cwd=elsewhere
    )
    assert keys(first) == keys(second)
    assert {s: n["digest"] for s, n in first.items()} == {s: n["digest"] for s, n in second.items()}


def test_moving_sources_and_store_changes_nothing(toy: Toy, tmp_path: Path):
    toy.run()
    moved_numbers, moved_store = tmp_path / "moved-numbers", tmp_path / "moved-store"
    toy.numbers.rename(moved_numbers)
    toy.store.rename(moved_store)
    assert states(toy.run(numbers=moved_numbers, store=moved_store, plan=True)) == ALL_CACHED
    assert all(note["cached"] for note in toy.run(numbers=moved_numbers, store=moved_store).values())


def test_wording_and_format_are_not_code(toy: Toy):
    toy.run()
    for module, old, new in (
        ("arithmetic", "# a comment", "# another comment"),
        ("arithmetic", "The product.", "The product of two numbers."),
        ("arithmetic", "return number * factor", "return (\n        number * factor\n    )"),
        ("stages", 'description="Factor."', 'description="By how much."'),
        ("stages", "import os\nimport time\n", "import time\nimport os\n"),
        ("stages", "Metrics, Parts, Shard, map_stage", "Metrics, Shard, Parts, map_stage"),
    ):
        toy.edit(module, old, new)
    assert states(toy.run(plan=True)) == ALL_CACHED


def test_code_of_an_imported_module_is_code(toy: Toy):
    toy.run()
    toy.edit("arithmetic", "number * factor", "factor * number")
    rows = toy.run(plan=True)
    assert rows["double"]["state"] == "run"
    assert states(rows)["total"] == "depends"


def test_config_input_and_library_are_in_the_key(toy: Toy):
    before = toy.run()
    assert states(toy.run(plan=True, factor=3))["double"] == "run"
    toy.set_library_version("1.1")
    rows = toy.run(plan=True)
    assert (rows["numbers"]["state"], rows["double"]["state"]) == ("cached", "run")
    toy.set_library_version("1.0")
    toy.write(b=5)
    after = toy.run()
    assert all(before[stage]["key"] != after[stage]["key"] for stage in before)


def test_only_the_changed_shard_is_built(toy: Toy):
    toy.run()
    toy.write(b=7)
    notes = toy.run()
    assert (notes["double"]["built"], notes["double"]["reused"]) == (1, 2)
    toy.write(aa=9)
    notes = toy.run(modulus=1)
    assert (notes["double"]["built"], notes["double"]["reused"]) == (1, 3)


def test_equal_shards_and_no_shards_are_legal(toy: Toy):
    toy.write(a=1, b=1, c=1)
    notes = toy.run()
    assert notes["double"]["built"] == 1
    assert len(notes["label"]["shards"]) == 3
    assert len(set(notes["label"]["shards"])) == 1


def test_equal_bytes_leave_successors_cached(toy: Toy):
    toy.write(a=1000, b=2000, c=3000)
    first = toy.run()
    toy.write(c=4000)
    second = toy.run()
    # The sum modulo 1000 is the same, so the total was built again to the same bytes.
    assert not second["total"]["cached"]
    assert second["total"]["digest"] == first["total"]["digest"]
    assert (second["label"]["built"], second["label"]["reused"]) == (1, 2)


def test_workers_do_not_change_the_bytes(toy: Toy, tmp_path: Path):
    toy.write(**{f"n{i}": i for i in range(6)})
    one = toy.run(workers=1, store=tmp_path / "one")
    two = toy.run(workers=2, store=tmp_path / "two")
    assert {s: n["digest"] for s, n in one.items()} == {s: n["digest"] for s, n in two.items()}


TEN: dict[str, int | str] = {name: number for number, name in enumerate("abcdefghij")}


def test_helpers_go_on_whatever_the_first_process_is_at(toy: Toy, tmp_path: Path):
    toy.write(**TEN)
    alone = toy.run(store=tmp_path / "alone")
    # After two shards the rest is worth a helper. It takes the third; the fourth is this process's, and ends after all others.
    log = tmp_path / "log"
    toy.write(**{**TEN, "d": "3 once 9"})
    beside = toy.run(workers=2, env={"TOY_LOG": str(log), "TOY_DELAY": "0.6"})
    assert beside["double"]["digest"] == alone["double"]["digest"]
    builders = log.read_text().split("\n")[:10]
    assert builders == [builders[0]] * 2 + [builders[2]] * 7 + [builders[0]]
    assert builders[0] != builders[2]


def test_what_fails_in_a_helper_is_told_in_its_words(toy: Toy, tmp_path: Path):
    toy.write(**{**TEN, "c": "odd"})
    log = tmp_path / "log"
    answer = toy.run(workers=2, env={"TOY_LOG": str(log), "TOY_DELAY": "0.6"}, fails=True)
    assert "Odd: a number that is odd" in answer["failed"]
    assert not answer["retryable"]
    assert "in double" in answer["log"]
    assert log.read_text().count("built") < 10


@pytest.mark.parametrize(
    "error", [FileNotFoundError("gone"), StageFailed("a helper found nothing", retryable=False)]
)
def test_a_build_whose_folder_another_computer_removed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fails(*_: object) -> int:
        raise error

    monkeypatch.setattr(child, "_build_in", fails)
    with pytest.raises(StageFailed, match="was removed meanwhile") as raised:
        child.build_spec(Mock(), tmp_path / "gone")
    assert raised.value.retryable
    with pytest.raises(type(error), match=str(error)):
        child.build_spec(Mock(), tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest", "shard"])
def test_what_is_broken_is_built_again_never_served(toy: Toy, damage: str):
    notes = toy.run()
    path = Path(notes["total"]["path"])
    if damage == "truncate":
        (path / "out" / "total").write_text("")
    elif damage == "delete":
        (path / "out" / "total").unlink()
    elif damage == "manifest":
        (path / "manifest.json").write_text((path / "manifest.json").read_text()[:40])
    else:
        (Path(notes["double"]["shards"][0]) / "number").write_text("1")
    broken = "double" if damage == "shard" else "total"
    row = toy.run(plan=True)[broken]
    assert row["state"] == "run"
    assert row["reason"].startswith("artifact broken")
    again = toy.run()
    assert not again[broken]["cached"]
    assert again[broken]["digest"] == notes[broken]["digest"]
    assert (Path(again["total"]["path"]) / "out" / "total").read_text() == "12"
    assert states(toy.run(plan=True)) == ALL_CACHED


def test_a_failure_names_its_cause_and_leaves_nothing(toy: Toy):
    toy.write(b="crash")
    answer = toy.run(fails=True)
    assert "a number that cannot be" in answer["failed"]
    assert not answer["retryable"]
    assert not (toy.store / "artifacts" / "double").exists()
    toy.write(b=2)
    notes = toy.run()
    assert (notes["double"]["built"], notes["double"]["reused"]) == (2, 1)


def test_a_check_after_the_shards_is_an_input_error(toy: Toy):
    toy.write(a=-100)
    answer = toy.run(fails=True)
    assert answer["input_error"] == "double: the sum is negative: add positive numbers"


def test_two_processes_build_once(toy: Toy, tmp_path: Path):
    log = tmp_path / "log"
    env = toy.environment(TOY_LOG=str(log), TOY_DELAY="0.3")
    both = [subprocess.Popen(toy.command(), env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [json.loads(process.communicate()[0].splitlines()[-1]) for process in both]
    assert keys(answers[0]) == keys(answers[1])
    assert log.read_text().count("built") == 3 + 1 + 3


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_leaves_no_result_and_no_process_and_the_next_run_goes_on(
    toy: Toy, tmp_path: Path, workers: int
):
    undisturbed = toy.run(store=tmp_path / "undisturbed", workers=workers)
    log = tmp_path / "log"
    env = toy.environment(TOY_LOG=str(log), TOY_DELAY="0.5")
    process = subprocess.Popen(toy.command(workers=workers), env=env, start_new_session=True)
    shards = toy.store / "shards" / "double"
    wait_until(lambda: shards.is_dir() and any(shards.iterdir()), "a shard", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert_no_process_of(toy.store)
    assert not (toy.store / "artifacts" / "double").exists()
    notes = toy.run(workers=workers)
    assert notes["double"]["reused"] >= 1
    assert {s: n["digest"] for s, n in notes.items()} == {s: n["digest"] for s, n in undisturbed.items()}
    assert log.read_text().count("built") <= 3 + workers


def test_a_damaged_memory_of_sources_is_made_anew(toy: Toy):
    toy.run()
    (toy.store / "sources.sqlite").write_bytes(b"not a database at all" * 100)
    assert states(toy.run(plan=True)) == ALL_CACHED


def test_interrupt_ends_everything(toy: Toy):
    process = subprocess.Popen(
        toy.command(),
        env=toy.environment(TOY_DELAY="30"),
        start_new_session=True,
    )
    wait_until(lambda: list((toy.store / "building").glob("double-*/*/spec.json")), "a build", process)
    process.send_signal(signal.SIGINT)
    process.wait(HANGING_SECONDS)
    assert_no_process_of(toy.store)
