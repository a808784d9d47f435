"""Figures go where a person asked for them, those of a step that was done again once, and a broken tracker costs no training."""

import json
import shutil
import threading
from pathlib import Path

import pytest

from model.errors import InputError
from model.trackers import TENSORBOARD, Trackers, check_trackers
from tasks.training.rank import train_here
from tests.model.test_train import spec
from tests.waiting import HANGING_SECONDS, wait_until


@pytest.fixture(autouse=True)
def _there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.trackers._CLOSING_SECONDS", HANGING_SECONDS)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "work" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.end_to_end
def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    made = spec(tmp_path / "x", log_to=("tensorboard",), checkpoint_every_seconds=0.0, keep_checkpoints=8)
    made.work.mkdir()
    train_here(made)
    for folder in made.work.glob("step-0000000[5-9]"):
        shutil.rmtree(folder)
    assert train_here(made)["resumed_from_step"] == 4
    shown = event_accumulator.EventAccumulator(str(made.work / TENSORBOARD))
    shown.Reload()
    assert {"loss", "gradient_norm", "learning_rate"} <= set(shown.Tags()["scalars"])
    scalars = shown.Scalars("loss")
    assert [scalar.step for scalar in scalars] == list(range(8))
    assert [scalar.value for scalar in scalars] == pytest.approx(losses(tmp_path / "x"))


@pytest.mark.end_to_end
def test_mlflow_has_one_run_of_a_training_that_was_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    uri = f"file://{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    made = spec(tmp_path / "x", log_to=("mlflow",), checkpoint_every_seconds=0.0, keep_checkpoints=8)
    made.work.mkdir()
    train_here(made)
    for folder in made.work.glob("step-0000000[5-9]"):
        shutil.rmtree(folder)
    train_here(made)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("scratchlm").experiment_id])
    assert run.data.params["d_model"] == "16"
    told = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert [told[step] for step in range(8)] == pytest.approx(losses(tmp_path / "x"))


@pytest.mark.end_to_end
def test_wandb_writes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = spec(tmp_path / "x", log_to=("wandb",))
    made.work.mkdir()
    train_here(made)
    (written,) = (made.work / "wandb").glob("offline-run-*/*.wandb")
    # A process of its own writes it, which may be behind when the run has ended.
    wait_until(lambda: b"gradient_norm" in written.read_bytes(), "the figures in the file")
    assert b"d_model" in written.read_bytes()


def test_a_library_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("model.trackers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"log_to names wandb, which is not installed: pip install"):
        check_trackers(("wandb",))


def test_a_tracker_that_fails_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    logged = []

    class Fails:
        def __init__(self, *_: object) -> None:
            self.left = 2

        def log(self, step: int, values: dict[str, float]) -> None:
            self.left -= 1
            if self.left < 0:
                raise ConnectionError("nobody is there")
            logged.append(step)

        def close(self) -> None:
            raise AssertionError("it was left out")

    monkeypatch.setattr("model.trackers.check_trackers", lambda names: None)
    monkeypatch.setattr("model.trackers._KINDS", {"mlflow": Fails})
    trackers = Trackers(("mlflow",), tmp_path, "x", {}, 0)
    for step in range(5):
        trackers.log(step, {"loss": 1.0})
    trackers.close()
    assert logged == [0, 1]
    said = capsys.readouterr().err
    assert (
        said.count("mlflow gets no more figures, the training goes on: ConnectionError: nobody is there") == 1
    )


def test_a_tracker_that_hangs_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    answers = threading.Event()

    class Hangs:
        def __init__(self, *_: object) -> None:
            answers.wait()

    monkeypatch.setattr("model.trackers.check_trackers", lambda names: None)
    monkeypatch.setattr("model.trackers._KINDS", {"mlflow": Hangs})
    monkeypatch.setattr("model.trackers._CLOSING_SECONDS", 0.1)
    trackers = Trackers(("mlflow",), tmp_path, "x", {}, 0)
    for step in range(5):
        trackers.log(step, {"loss": 1.0})
    trackers.close()
    answers.set()
    assert "mlflow did not take all figures" in capsys.readouterr().err
