"""The command on bad input: one sentence, exit code 2, nothing built; and how fast it answers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.command.app import COMMANDS, load_command
from flows.runs.changes import explain_change
from tests.waiting import HANGING_SECONDS

SCRATCHLM = str(Path(sys.executable).parent / "scratchlm")
TINY = {
    "ingest": {"sources": [{"path": "text"}], "shard_bytes": 10_000},
    "train_tokenizer": {"vocabulary_size": 300},
    "model": {"n_layers": 1, "d_model": 16, "n_heads": 1, "context_length": 32},
    "train_model": {"tokens": 2048, "tokens_per_batch": 1024},
}


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRATCHLM, *arguments], cwd=folder, capture_output=True, text=True, timeout=HANGING_SECONDS
    )


def write(folder: Path, **sections) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**TINY, **sections}))


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr


def test_input_that_cannot_work_is_refused_before_anything_starts(tmp_path: Path):
    write(tmp_path)
    assert "there is no file or folder 'text'" in refused(command(tmp_path, "plan", "recipe.yaml"))
    verb = "run"
    assert "there is no file or folder 'text'" in refused(command(tmp_path, verb, "recipe.yaml"))
    (tmp_path / "text").mkdir()
    assert "holds no file" in refused(command(tmp_path, verb, "recipe.yaml"))
    (tmp_path / "text" / "a.txt").write_text("Some text.")
    write(tmp_path, evaluate_model={"tasks": ["arc_esy"]})
    assert "did you mean 'arc_easy'?" in refused(command(tmp_path, verb, "recipe.yaml"))
    write(tmp_path, evaluate_model={"tasks": ["no_such_benchmark_anywhere"], "data": "hub"})
    message = refused(command(tmp_path, verb, "recipe.yaml"))
    assert "no_such_benchmark_anywhere" in message
    write(tmp_path, modle={})
    assert "did you mean 'model'?" in refused(command(tmp_path, verb, "recipe.yaml"))
    assert "there is no recipe other.yaml" in refused(command(tmp_path, verb, "other.yaml"))
    assert not (tmp_path / "store" / "artifacts").exists()
    write(tmp_path)
    (tmp_path / "file").write_text("")
    assert "cannot be a folder" in refused(command(tmp_path, verb, "recipe.yaml", "--store", "file"))
    assert "lies in the source folder" in refused(
        command(tmp_path, verb, "recipe.yaml", "--store", "text/store")
    )


@pytest.mark.end_to_end
def test_what_only_a_stage_can_know_ends_that_stage(tmp_path: Path, speeches: list[Path]):
    folder = tmp_path / "text"
    folder.mkdir()
    for stage in ("ingest", "clean"):
        assert command(tmp_path, "task", stage, "recipe.yaml").returncode == 2
    write(tmp_path)
    (folder / "a.txt").write_text("  \n")
    assert "a.txt: no text" in refused(command(tmp_path, "task", "ingest", "recipe.yaml"))
    (folder / "a.txt").write_text("Too short to be prose.")
    write(tmp_path, ingest={"sources": [{"path": "text", "profile": "web"}]})
    assert command(tmp_path, "task", "ingest", "recipe.yaml").returncode == 0
    message = refused(command(tmp_path, "task", "clean", "recipe.yaml"))
    assert (
        "clean keeps none of 1 documents: too few words (1): the main reason is clean.gopher_quality.min_words"
        in message
    )
    assert "--set clean.gopher_quality=off" in message


def test_a_server_that_does_not_answer(tmp_path: Path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Some text.")
    write(tmp_path)
    env = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run(
        [SCRATCHLM, "run", "recipe.yaml"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert "no Prefect server answers there" in refused(done)


def test_a_device_that_is_not_there(tmp_path: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this computer has a CUDA device")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Some text.")
    write(tmp_path, machine={"device": "cuda"})
    assert "torch finds no CUDA device here" in refused(command(tmp_path, "run", "recipe.yaml"))


def test_task_needs_its_inputs_and_an_existing_name(tmp_path: Path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Some text.")
    write(tmp_path)
    message = refused(command(tmp_path, "task", "clean", "recipe.yaml"))
    assert "clean needs the result of ingest, which is not built yet" in message
    assert "there is no stage 'claen'" in refused(command(tmp_path, "task", "claen", "recipe.yaml"))


def test_task_stops_in_the_debugger_where_a_stage_fails(tmp_path: Path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Some text.")
    write(tmp_path)

    def debug() -> subprocess.CompletedProcess[str]:
        command = [SCRATCHLM, "task", "ingest", "recipe.yaml", "--pdb"]
        asked = "p 40 + 2\nq\n"
        return subprocess.run(command, cwd=tmp_path, input=asked, capture_output=True, text=True)

    # Text that is none is a fault of the data, in the middle of the stage.
    (tmp_path / "text" / "a.txt").write_text(" ")
    assert "(Pdb) 42" in debug().stdout
    # What is wrong before it begins is a sentence, as without a debugger.
    (tmp_path / "text" / "a.txt").unlink()
    assert "holds no file" in refused(debug())
    (tmp_path / "text" / "a.txt").write_text("Some text.")
    blocked = tmp_path / "store" / "building"
    shutil.rmtree(blocked, ignore_errors=True)
    blocked.write_text("in the way")
    done = debug()
    assert done.returncode == 1
    assert "(Pdb) 42" in done.stdout


def test_task_shows_the_shards_that_it_built(tmp_path: Path, speeches: list[Path]):
    (tmp_path / "text").mkdir()
    for path in speeches[:12]:
        (tmp_path / "text" / path.name).write_text(path.read_text()[:5_000])
    write(tmp_path)
    assert command(tmp_path, "task", "ingest", "recipe.yaml").returncode == 0
    done = command(tmp_path, "task", "clean", "recipe.yaml", "--sample", "2")
    assert "2 shards are there; the whole was not published" in done.stdout
    assert done.stdout.count("documents.parquet: ") == done.stdout.count("verdicts.parquet: ") == 2
    (folder,) = {line.split(": ")[1] for line in done.stdout.splitlines() if line.startswith("shard 0: ")}
    assert (Path(folder) / "documents.parquet").is_file()
    assert '"id": "text/1790-Washington-1.txt"' in done.stdout


def test_estimate_says_what_a_training_needs_before_anything_is_bought(tmp_path: Path):
    """On hardware that is not here, of a text that is not here either."""
    write(
        tmp_path,
        model={"size": "7B"},
        train_tokenizer={"vocabulary_size": 32_000},
        train_model={"tokens": 140_000_000_000, "tokens_per_batch": 2**22},
        machine={"dollars_per_hour": 2.5},
    )

    def estimated(on: str, *more: str) -> dict:
        done = command(tmp_path, "estimate", "recipe.yaml", "--on", on, "--json", *more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    found = estimated("h100x8")
    assert found["dtype"] == "bfloat16"
    assert found["fits"]
    assert found["zero_stage"] > 1
    assert found["parameters"] == pytest.approx(7e9, rel=0.05)
    assert found["tokens_per_parameter"] == pytest.approx(20, rel=0.05)
    # Six for each parameter and token, and attention (Kaplan et al. 2020).
    assert found["flops"] == pytest.approx(6 * found["parameters"] * found["tokens"], rel=0.15)
    assert found["dollars"] == pytest.approx(2.5 * 8 * found["seconds"] / 3600)
    assert estimated("h100x64")["seconds"] == pytest.approx(found["seconds"] / 8, rel=0.4)
    alone = estimated("rtx-4090")
    assert not alone["fits"]
    assert alone["dollars"] is None
    told = command(tmp_path, "estimate", "recipe.yaml", "--on", "rtx-4090").stdout
    assert "take more devices" in told
    assert "say a kind of device and how many, such as h100x8; known are b200" in refused(
        command(tmp_path, "estimate", "recipe.yaml", "--on", "abacus")
    )


def test_runs_that_are_not_there(tmp_path: Path):
    assert "there is no run in" in refused(command(tmp_path, "report"))
    assert "there is no run in" in refused(command(tmp_path, "why", "latest", "x"))
    assert "there is no run in" in refused(command(tmp_path, "generate", "latest", "x"))


def test_help_helps_and_imports_nothing_heavy(tmp_path: Path):
    done = command(tmp_path, "--help")
    for verb in COMMANDS:
        assert verb in done.stdout
        assert load_command(verb).help.startswith(COMMANDS[verb][1])
    heavy = {
        "torch",
        "prefect",
        "datatrove",
        "transformers",
        "datasets",
        "lm_eval",
        "deepspeed",
        "matplotlib",
    }
    everything = "run stages store champion serve recipes"
    for modules, unwanted in (
        ("app", heavy | {"pydantic", "yaml", "pyarrow", "rich.markdown"}),
        (everything, heavy),
    ):
        names = ", ".join(f"flows.command.{name}" for name in modules.split())
        code = f"import sys, {names}; print(sorted({unwanted!r} & set(sys.modules)))"
        assert (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
            == "[]"
        )


def test_version_and_completion(tmp_path: Path):
    assert "Did you mean 'finetune'?" in refused(command(tmp_path, "finetun"))
    assert command(tmp_path, "--version").stdout.startswith("scratchlm ")
    environment = {
        **os.environ,
        "_SCRATCHLM_COMPLETE": "complete_bash",
        "COMP_WORDS": "scratchlm ev",
        "COMP_CWORD": "1",
    }
    done = subprocess.run([SCRATCHLM], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["evaluate"]


def test_a_package_of_the_same_name_that_is_not_ours_is_named(tmp_path: Path):
    for name in ("tasks.py", "model/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([SCRATCHLM, "--version"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not scratchlm's" in done.stderr
    assert "Traceback" not in done.stderr


OLD = {
    "stage": "s",
    "config": {"a": 1, "b": {"c": [1, 2]}},
    "code": {"tasks.x": "1", "tasks.y": "2"},
    "libraries": {"torch": "1"},
    "python": "3.11",
    "inputs": {"documents": "d"},
    "source": [["a.txt", 1, "f"], ["b.txt", 1, "g"]],
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "its result is not in the store any more"),
        ({"config": {"a": 2, "b": {"c": [1, 2]}}}, "config s.a from 1 to 2"),
        ({"config": {"a": 1, "b": {"c": [1, 3]}}}, "config s.b.c[1] from 2 to 3"),
        ({"code": {"tasks.x": "1", "tasks.y": "3"}}, "code of tasks.y"),
        ({"libraries": {"torch": "2"}}, "library torch from 1 to 2"),
        ({"python": "3.12"}, "Python from 3.11 to 3.12"),
        ({"inputs": {"documents": "e"}}, "input documents"),
        ({"source": [["a.txt", 1, "f"], ["c.txt", 1, "g"]]}, "source: 1 files added, 1 files removed"),
        ({"source": [["a.txt", 1, "z"], ["b.txt", 1, "g"]]}, "source: 1 files changed"),
    ],
)
def test_reasons(change: dict, reason: str):
    assert explain_change(OLD, {**json.loads(json.dumps(OLD)), **change}) == reason


def test_no_reason_without_a_past():
    assert explain_change(None, OLD) == "no result yet"


INTERRUPTED_AT = """
import sys

module = sys.argv[1]

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as error:
                # As pydantic makes another error of what comes while a class is made.
                raise RuntimeError("Error calling __set_name__") from error

sys.meta_path.insert(0, Interrupts())
from flows.command.main import main
sys.argv = ["scratchlm", "sql", "latest", "select 1"]
main()
"""


@pytest.mark.parametrize("module", ["flows.command.app", "flows.runs.record"])
def test_ctrl_c_while_a_library_is_imported_is_an_end_as_any(module: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT, module], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 130
    assert done.stderr == "interrupted; the same command goes on from what was saved\n"
