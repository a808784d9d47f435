"""What is read of a model is shared by the ranks that train, and comes to the same; a killed one costs no run."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tasks.tables import read_table
from tests.end_to_end.conftest import RECIPE, Line
from tests.waiting import HANGING_SECONDS, assert_no_process_of, processes_of, wait_until

pytestmark = pytest.mark.end_to_end

STAGES = ("evaluate_held_out", "evaluate_model")
TABLES = {"evaluate_held_out": "held_out.parquet", "evaluate_model": "items.parquet"}


def result(line: Line, stage: str) -> Path:
    (folder,) = (line.store / "artifacts" / stage).iterdir()
    return folder


def ranks_of(line: Line, stage: str) -> list[int]:
    """Those that do the job of a stage."""

    def command(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return ""

    job = f"tasks.engine.ranks\0rank\0{line.store / 'work' / stage}"
    return [pid for pid in processes_of(line.store) if job in command(pid)]


def test_two_ranks_read_the_same_and_one_that_is_killed_costs_no_run(line: Line, tmp_path: Path):
    copy = Line(tmp_path / "copy", line.server)
    shutil.copytree(line.untouched, copy.root, symlinks=True)
    for stage in STAGES:
        shutil.rmtree(copy.store / "artifacts" / stage)
    copy.write_recipe(machine={**RECIPE["machine"], "ranks": 2})
    process = copy.start()
    ranks = wait_until(
        lambda: two if len(two := ranks_of(copy, "evaluate_held_out")) == 2 else None, "two ranks", process
    )
    os.kill(ranks[1], signal.SIGKILL)
    out, err = process.communicate(timeout=HANGING_SECONDS)
    assert process.returncode == 0, err
    done = json.loads(out.splitlines()[-1])
    assert {name for name, made in done["artifacts"].items() if not made["cached"]} == set(STAGES)
    for stage, table in TABLES.items():
        ours, theirs = (
            read_table(result(each, stage) / "out" / table).to_pandas()
            for each in (copy, Line(line.untouched, None))
        )
        numbers = [name for name in ours if ours[name].dtype == float]
        assert ours.drop(columns=numbers).equals(theirs.drop(columns=numbers))
        for name in numbers:
            assert ours[name].tolist() == pytest.approx(theirs[name].tolist(), rel=1e-4, nan_ok=True)
    assert done["results"]["bits_per_byte"] == pytest.approx(line.first["results"]["bits_per_byte"], rel=1e-5)
    ours, theirs = (each["results"]["benchmarks"]["sciq"] for each in (done, line.first))
    assert ours == {name: pytest.approx(value, rel=1e-4) for name, value in theirs.items()}
    assert_no_process_of(copy.store)
