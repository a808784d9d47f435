"""kill -9, SIGTERM and rot, through the real command: what was done stays, nothing is orphaned, the end is the same."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import RECIPE, Line
from tests.waiting import HANGING_SECONDS, assert_no_process_of, processes_of, wait_until

pytestmark = pytest.mark.end_to_end

TRAINING = {**RECIPE["train_model"], "tokens": 40_960, "evaluations": 1}
N_STEPS = 80
EVERY_STEP = {**RECIPE["machine"], "checkpoint_every_seconds": 0}


def checkpoints(line: Line) -> list[Path]:
    return sorted((line.store / "work").glob("train_model-*/step-*"))


@pytest.fixture
def prepared(line: Line, tmp_path: Path) -> Iterator[Line]:
    """A copy of the line in which all but training is done, for a longer training with a checkpoint after every step."""
    copy = Line(tmp_path / "copy", line.server)
    shutil.copytree(line.untouched, copy.root, symlinks=True)
    copy.write_recipe(train_model=TRAINING, machine=EVERY_STEP)
    yield copy
    assert_no_process_of(copy.store)


@pytest.fixture(scope="module")
def undisturbed(line: Line, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The longer training without any disturbance."""
    copy = Line(tmp_path_factory.mktemp("undisturbed") / "copy", line.server)
    shutil.copytree(line.untouched, copy.root, symlinks=True)
    copy.write_recipe(train_model=TRAINING)
    return finish(copy, last="export_model")


def manifests(line: Line, stage: str) -> list[Path]:
    found = (line.store / "artifacts" / stage).glob("*/manifest.json")
    return sorted(found, key=lambda path: json.loads(path.read_text())["created"])


def finish(line: Line, process: subprocess.Popen | None = None, last: str = "train_model") -> dict[str, Any]:
    """Let a run go on until it has trained, or exported, the new model, and end it: what it came to."""
    process = process or line.start()
    wait_until(lambda: len(manifests(line, last)) == 2, f"the end of {last}", process)
    process.terminate()
    process.communicate(timeout=HANGING_SECONDS)
    training = manifests(line, "train_model")[-1]
    lines = map(json.loads, (training.parent / "out" / "figures" / "metrics.jsonl").read_text().splitlines())
    return {
        "resumed_from_step": json.loads(training.read_text())["metrics"]["resumed_from_step"],
        "digests": {
            stage: json.loads(manifests(line, stage)[-1].read_text())["digest"]
            for stage in dict.fromkeys(("train_model", last))
        },
        "losses": [(line["step"], line["loss"]) for line in lines],
    }


def assert_same_end(done: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    assert done["losses"] == undisturbed["losses"]
    assert done["digests"].items() <= undisturbed["digests"].items()
    assert [step for step, _ in undisturbed["losses"]] == list(range(N_STEPS))


def kill(process: subprocess.Popen, line: Line) -> None:
    """kill -9 of the command once it has saved twice."""
    wait_until(lambda: len(checkpoints(line)) == 2, "two checkpoints", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert_no_process_of(line.store)


def test_kill_of_the_command_goes_on_to_the_same_bytes_from_a_checkpoint_that_is_whole(
    prepared: Line, undisturbed: dict
):
    kill(prepared.start(), prepared)
    newest = checkpoints(prepared)[-1]
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = finish(prepared, last="export_model")
    assert 1 <= done["resumed_from_step"] < int(newest.name.removeprefix("step-"))
    assert_same_end(done, undisturbed)


def kill_rank(line: Line, verb: str, n_ranks: int) -> None:
    """kill -9 of the last of the ranks."""
    ranks = [
        pid
        for pid in processes_of(line.store)
        if f"tasks.engine.ranks\0{verb}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(ranks) == n_ranks
    os.kill(max(ranks), signal.SIGKILL)


def test_kill_of_a_rank_is_retried_in_the_same_run(prepared: Line, undisturbed: dict):
    process = prepared.start()
    wait_until(lambda: len(checkpoints(prepared)) == 2, "two checkpoints", process)
    kill_rank(prepared, "launch", 1)
    done = finish(prepared, process)
    assert done["resumed_from_step"] >= 1
    assert_same_end(done, undisturbed)


def test_another_machine_goes_on_with_other_ranks_and_loses_one_of_them(prepared: Line, undisturbed: dict):
    """The rank that survives fails as well: its connection is closed, and that is not why the training failed."""
    kill(prepared.start(), prepared)
    former = checkpoints(prepared)
    prepared.write_recipe(train_model=TRAINING, machine={**EVERY_STEP, "ranks": 2, "zero_stage": 2})
    process = prepared.start()
    wait_until(lambda: not set(former) & set(checkpoints(prepared)), "two more checkpoints", process)
    kill_rank(prepared, "rank", 2)
    done = finish(prepared, process)
    assert done["resumed_from_step"] > int(former[-1].name.removeprefix("step-"))
    for (step, loss), (same_step, other) in zip(done["losses"], undisturbed["losses"], strict=True):
        assert (step, loss) == (same_step, pytest.approx(other, rel=2e-4))


def test_sigterm_saves_and_leaves(prepared: Line, undisturbed: dict):
    prepared.write_recipe(
        train_model=TRAINING, machine={**RECIPE["machine"], "checkpoint_every_seconds": 1000}
    )
    process = prepared.start()
    progress = prepared.store / "work"
    wait_until(lambda: list(progress.glob("train_model-*/ranks-*/progress.json")), "training", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=HANGING_SECONDS)
    assert process.returncode == 130
    assert "goes on from what was saved" in err
    assert len(checkpoints(prepared)) == 1
    assert_no_process_of(prepared.store)
    done = finish(prepared)
    assert done["resumed_from_step"] >= 1
    assert_same_end(done, undisturbed)


def test_kill_in_the_middle_of_stages_of_every_kind(line: Line, tmp_path: Path):
    """Whole, map, tokenizer, training, model; tests/faults kills at any moment."""
    copy = Line(tmp_path / "copy", line.server)
    copy.root.mkdir()
    shutil.copytree(line.corpus, copy.corpus)
    copy.write_recipe()
    line.lend(copy, "index_benchmarks", "evaluate_model")
    for stage in ("ingest", "clean", "train_tokenizer", "train_model", "export_model"):
        process = copy.start()

        def is_built(stage: str = stage) -> bool:
            building = list((copy.store / "building").glob(f"{stage}-*"))
            return bool(building) or (copy.store / "artifacts" / stage).exists()

        wait_until(is_built, stage, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert_no_process_of(copy.store)
    done = copy.run()
    for stage, artifact in line.first["artifacts"].items():
        assert done["artifacts"][stage]["digest"] == artifact["digest"], stage


def test_a_killed_server_costs_nothing_and_a_killed_run_leaves_none_behind(line: Line, tmp_path: Path):
    copy = Line(tmp_path / "copy", None)
    copy.root.mkdir()
    shutil.copytree(line.corpus, copy.corpus)
    copy.write_recipe()

    def servers() -> list[int]:
        """Those that answer nobody any more are still there for a moment, without a command."""
        found = []
        for pid in processes_of(copy.store):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            found += [pid] if b"flows.serving.server" in command else []
        return found

    process = copy.start()
    wait_until(lambda: (copy.store / "artifacts" / "ingest").exists(), "ingest", process)
    (server,) = servers()
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: set(servers()) - {server}, "another server", process)
    wait_until(lambda: (copy.store / "artifacts" / "split").exists(), "the split", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert_no_process_of(copy.store)


def test_two_commands_at_once_build_once(line: Line, tmp_path: Path):
    copy = Line(tmp_path / "copy", line.server)
    shutil.copytree(line.untouched, copy.root, symlinks=True)
    copy.write_recipe(evaluate_model={**RECIPE["evaluate_model"], "limit": 5})
    both = [copy.start() for _ in range(2)]
    answers = []
    for process in both:
        out, err = process.communicate(timeout=HANGING_SECONDS)
        assert process.returncode == 0, err
        answers.append(json.loads(out.splitlines()[-1])["artifacts"])
    for stage in answers[0]:
        assert answers[0][stage]["key"] == answers[1][stage]["key"]
        assert answers[0][stage]["cached"] or answers[1][stage]["cached"], stage
    assert_no_process_of(copy.store)
