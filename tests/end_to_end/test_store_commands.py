"""show, diff, verify, gc, --accept and secrets, on a copy of a finished line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.end_to_end.conftest import CANARIES, Line
from tests.waiting import HANGING_SECONDS

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def copy(line: Line, tmp_path: Path) -> Line:
    made = Line(tmp_path / "copy", line.server)
    shutil.copytree(line.root, made.root, symlinks=True)
    made.first = line.first
    return made


@pytest.fixture(scope="module")
def evaluated_again(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A copy with a second run, on fewer items."""
    made = Line(tmp_path_factory.mktemp("again") / "copy", line.server)
    shutil.copytree(line.root, made.root, symlinks=True)
    made.first = line.first
    made.run("--set", "evaluate_model.limit=5")
    return made


def test_show_lists_runs_and_shows_one_and_a_result(copy: Line):
    run = copy.first["run"]
    assert run in copy.call("show").stdout
    shown = json.loads(copy.call("show", run, "--json").stdout)
    key = shown["stages"]["clean"]["key"]
    assert json.loads(copy.call("show", key[:12], "--json").stdout)["stage"] == "clean"
    assert "is the beginning of 0 keys" in copy.call("show", "nothing", code=2).stderr


def test_diff_names_what_changed(evaluated_again: Line):
    lines = evaluated_again.call("diff", evaluated_again.first["run"], "latest").stdout.splitlines()
    assert lines[0] == "recipe.evaluate_model.limit: 10 -> 5"
    assert any(line.startswith("evaluate_model: config evaluate_model.limit from 10 to 5") for line in lines)
    assert "  benchmarks.sciq.items: 10 -> 5" in lines


def test_verify_finds_a_changed_byte(copy: Line):
    assert "all results" in copy.call("verify").stdout
    victim = next((copy.store / "artifacts" / "train_tokenizer").glob("*/out/tokenizer.json"))
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(data)
    assert str(victim) in copy.call("verify", code=1).stdout


def test_gc_keeps_what_recent_runs_need(evaluated_again: Line, tmp_path: Path):
    copy = Line(tmp_path / "copy", evaluated_again.server, evaluated_again.first)
    shutil.copytree(evaluated_again.root, copy.root, symlinks=True)
    needed = json.loads(copy.call("show", copy.first["run"], "--json").stdout)["stages"]
    abandoned = copy.store / "work" / "train_model-0123"
    abandoned.mkdir(parents=True)
    (abandoned / "checkpoint").write_bytes(bytes(1_000_000))
    asked = copy.call("gc", "--keep-runs", "1", code=2)
    assert "1.0 MB  work/train_model-0123" in asked.stdout
    assert f"runs/{copy.first['run']}" in asked.stdout
    assert "give --yes" in asked.stderr
    assert abandoned.exists()
    copy.call("gc", "--keep-runs", "1", "--yes")
    assert not abandoned.exists()
    assert not (copy.store / "artifacts" / "evaluate_model" / needed["evaluate_model"]["key"]).exists()
    assert (copy.store / "artifacts" / "train_model" / needed["train_model"]["key"]).exists()
    rows = copy.plan("--set", "evaluate_model.limit=5")
    assert {row["state"] for row in rows.values()} == {"cached"}
    assert "all results" in copy.call("verify").stdout


def test_accept_takes_an_earlier_result_and_says_by_whom(copy: Line, tmp_path: Path):
    """The code of clean is edited in a copy of the project: without --accept all of the text would be cleaned again."""
    project = tmp_path / "project"
    for name in ("flows", "tasks", "model"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    source = project / "tasks" / "text" / "clean.py"
    source.write_text(source.read_text() + "\n\nEDITED = True\n")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**copy.environment(), "PYTHONPATH": str(project), "PYTHONSAFEPATH": "1"}
        command = [
            sys.executable,
            "-c",
            "from flows.command.main import main; main()",
            *arguments,
            "--store",
            str(copy.store),
        ]
        return subprocess.run(
            command, cwd=copy.root, env=env, capture_output=True, text=True, timeout=HANGING_SECONDS
        )

    rows = {row["stage"]: row for row in json.loads(call("plan", "recipe.yaml", "--json").stdout)}
    assert (rows["clean"]["state"], rows["clean"]["reason"].split(";")[0]) == (
        "run",
        "code of tasks.text.clean",
    )
    refused = call("run", "recipe.yaml", "--accept", "clean", "--set", "clean.max_document_seconds=59")
    assert refused.returncode == 2
    assert "only changed code and libraries can be accepted" in refused.stderr
    done = call("run", "recipe.yaml", "--accept", "clean", "--json")
    assert done.returncode == 0, done.stderr
    artifacts = json.loads(done.stdout.splitlines()[-1])["artifacts"]
    assert all(artifact["cached"] for artifact in artifacts.values())
    manifest = json.loads((Path(artifacts["clean"]["path"]).parent / "manifest.json").read_text())
    assert manifest["accepted"]["by"]
    assert manifest["accepted"]["differences"] == ["code of tasks.text.clean"]
    report = Path(json.loads(done.stdout.splitlines()[-1])["report"]).read_text()
    assert "<b>accepted</b> by" in report


def test_secrets_are_written_nowhere(copy: Line):
    """Every command of these tests has them in its environment, also the one that made this line."""
    assert set(CANARIES.items()) <= set(copy.environment().items())
    copy.server = None  # the database of a server of its own is searched, too
    copy.call("evaluate", copy.first["run"], "--tasks", "sciq", "--limit", "3", "--json")
    written = {
        path: path.read_bytes() for path in copy.root.rglob("*") if path.is_file() and not path.is_symlink()
    }
    assert any(path.name == "log.txt" for path in written)
    for canary in CANARIES.values():
        assert not [path for path, content in written.items() if canary.encode() in content]
    source = f"ingest.sources.0.path=s3://{CANARIES['HF_TOKEN']}@bucket"
    refused = copy.call("plan", "recipe.yaml", "--set", source, code=2)
    assert "the recipe holds the value of HF_TOKEN" in refused.stderr
    assert CANARIES["HF_TOKEN"] not in refused.stderr


def test_what_a_child_prints_is_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import asyncio

    from tasks.engine.process import run_child

    monkeypatch.setenv("HUB_TOKEN", "canary-0123456789")
    program = "import os, sys; print('token is', os.environ['HUB_TOKEN']); sys.stderr.write(os.environ['HUB_TOKEN'])"
    ended = asyncio.run(run_child([sys.executable, "-c", program], tmp_path / "log", lambda: None))
    assert ended == (0, "")
    assert (tmp_path / "log").read_text().count("[HUB_TOKEN]") == 2
    assert "canary" not in (tmp_path / "log").read_text()
    assert os.environ["HUB_TOKEN"] == "canary-0123456789"


def test_why_tells_what_it_knows_of_a_run_that_failed(copy: Line):
    copy.call("run", "recipe.yaml", "--set", "clean.max_dropped=0.01", code=2)
    junk = json.loads(copy.call("why", "latest", "junk", "--json").stdout)
    assert [verdict["outcome"] for verdict in junk] == ["read", "dropped"]
    assert "clean.repetition.min_distinct" in junk[-1]["detail"]
    assert "the limit is 0.1" in junk[-1]["detail"]
    kept = json.loads(copy.call("why", "latest", "speech-00", "--json").stdout)
    assert [(verdict["stage"], verdict["outcome"]) for verdict in kept[1:]] == [
        ("clean", "kept"),
        ("deduplicate", "not known"),
    ]
    shown = copy.call("show", "latest").stdout
    assert "failed" in shown
    assert "clean keeps" in shown
    report = (copy.store / "runs" / "latest" / "report.html").read_text()
    assert report.index("It failed") < report.index("Where every document ended")


def test_show_is_a_page_on_a_run(copy: Line):
    shown = copy.call("show", copy.first["run"]).stdout
    assert "documents kept, 1 dropped (the same over and over)" in shown
    assert "held-out bits per byte" in shown
    assert str(copy.store / "runs" / copy.first["run"] / "report.html") in shown
    assert not shown.lstrip().startswith("{")
