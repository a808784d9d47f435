"""A scheduled retraining finds text of a new kind, promotes, refuses ruined text, and can be rolled back."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.conftest import RECIPE, Line
from tests.end_to_end.serving import Serve
from tests.waiting import ASKING_A_SERVER, wait_until

pytestmark = pytest.mark.end_to_end

SECTIONS = {
    "train_model": {**RECIPE["train_model"], "tokens": 65_536, "tokens_per_batch": 1024},
    "retrain": {"min_new_documents": 10},
    "evaluate_model": {"tasks": []},
}


def add_code(folder: Path) -> None:
    """Python source, which a model of speeches never saw."""
    files = [path for path in sorted(Path(os.__file__).parent.glob("*.py")) if path.stat().st_size > 9_000]
    for i, path in enumerate(files[:40]):
        (folder / f"code-{i:03d}.txt").write_text(path.read_text(errors="replace")[3_000:7_000])


def events(line: Line) -> list[dict]:
    return json.loads((line.store / "champions" / "tiny.json").read_text())["history"]


def champion(line: Line) -> str:
    return json.loads(line.call("champion", "show", "--json").stdout)["run"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, prefect_server: str, speeches: list[Path]) -> Line:
    """Sixty pieces of speeches, and their first champion."""
    line = Line(tmp_path_factory.mktemp("retrain"), prefect_server)
    line.corpus.mkdir()
    for i, path in enumerate(speeches[:30]):
        text = path.read_text()
        for half in range(2):
            (line.corpus / f"speech-{2 * i + half:03d}.txt").write_text(
                text[1_000 + 4_000 * half : 5_000 + 4_000 * half]
            )
    line.write_recipe(**SECTIONS)
    line.call("retrain", "recipe.yaml")
    return line


def test_a_scheduled_retraining_promotes_and_refuses_and_is_rolled_back(first: Line):
    former = champion(first)
    add_code(first.corpus)
    served = Serve(first, "--every", "20s")
    try:
        wait_until(lambda: len(events(first)) == 2, "the promotion")
        assert events(first)[1]["event"] == "promoted"
        assert champion(first) != former

        def named(name: str) -> list[dict]:
            states = {"state": {"name": {"any_": [name]}}}
            return served.post("/flow_runs/filter", {"flow_runs": states})

        assert wait_until(lambda: named("Promoted"), "its state", None, ASKING_A_SERVER)

        def followed() -> list[dict]:
            deployments = {
                "deployments": {"name": {"any_": ["tiny"]}},
                "flows": {"name": {"any_": ["evaluate"]}},
            }
            runs = served.post("/flow_runs/filter", deployments)
            return [run for run in runs if run["state"]["type"] == "COMPLETED"]

        # What follows a promotion is started with the run that was promoted.
        assert wait_until(followed, "the evaluation of the new champion", None, ASKING_A_SERVER)[0][
            "parameters"
        ]["model"] == champion(first)
        quiet = wait_until(lambda: named("Nothing new"), "a run with nothing new", None, ASKING_A_SERVER)[0]
        assert served.stages(quiet["id"]) == {}
        assert quiet["state"]["message"].startswith("0 new documents")
        good = {path: path.read_text() for path in sorted(first.corpus.glob("*.txt"))}
        for i, (path, text) in enumerate(good.items()):
            words = text.split()
            random.Random(i).shuffle(words)
            path.write_text(" ".join(words))
        wait_until(lambda: len(events(first)) == 3, "the refusal")
    finally:
        served.stop()
    for path, text in good.items():
        path.write_text(text)
    assert json.loads(first.call("champion", "history", "--json").stdout) == events(first)
    refused = events(first)[2]
    assert refused["event"] == "refused"
    assert "not surely better" in refused["reason"]
    assert champion(first) == events(first)[1]["run"]
    first.call("champion", "rollback", "--reason", "a test")
    assert champion(first) == former
    assert events(first)[-1]["reason"] == "a test"
    assert "nothing to roll back to" in first.call("champion", "rollback", code=2).stderr


def test_a_listed_split_cannot_be_retrained(first: Line):
    recipe = first.root / "recipe.yaml"
    done = first.call(
        "retrain", str(recipe), "--set", "split={validation_ids: [text/speech-000.txt]}", code=2
    )
    assert "retrain needs a split by hash" in done.stderr


def test_another_split_than_the_champions_is_refused(first: Line):
    done = first.call("retrain", "recipe.yaml", "--set", "split.seed=1", code=2)
    assert "the section split is not that of the champion" in done.stderr


def test_going_on_from_the_champions_weights_once_a_person_approves(first: Line):
    add_code(first.corpus)
    before = champion(first)
    # The schedule of the test before, and the slot of a run that its end cut off for as long as Prefect leases it.
    shutil.rmtree(first.store / "prefect", ignore_errors=True)
    served = Serve(first)
    try:
        secret = served.get("/block_types/slug/secret")["id"]
        schema = served.post(
            "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [secret]}}}
        )[0]["id"]
        block = {
            "name": "hub-token",
            "data": {"value": "canary-block"},
            "block_type_id": secret,
            "block_schema_id": schema,
        }
        served.post("/block_documents/", block)
        deployment = served.deployment("retrain/tiny")
        recipe = {**deployment["parameters"]["recipe"], "retrain": {"start": "champion", "approval": True}}
        parameters = {
            **deployment["parameters"],
            "recipe": recipe,
            "force": True,
            "secrets": {"HF_TOKEN": "hub-token"},
        }
        run = served.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})[
            "id"
        ]
        paused = wait_until(
            lambda: next((s for s in [served.state(run)] if s["type"] == "PAUSED"), None), "the question"
        )
        asked = f"/flow_runs/{run}/input/{paused['state_details']['run_input_keyset']['description']}"
        wait_until(lambda: "bits per byte" in served.get(asked), "the comparison")
        assert champion(first) == before
        served.post(f"/flow_runs/{run}/resume", {"run_input": {"approve": True, "reason": "reads well"}})
        state = served.end(run)
    finally:
        served.stop()
    assert state["name"] == "Promoted"
    assert events(first)[-1]["by"] == "a person in the Prefect UI"
    assert "reads well" in events(first)[-1]["reason"]
    record = json.loads((first.store / "runs" / champion(first) / "run.json").read_text())
    assert record["stages"]["train_model"]["stage"] == "continue_training"
    assert record["stages"]["train_tokenizer"]["cached"]
    kept = [path for path in first.store.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not any(b"canary-block" in path.read_bytes() for path in kept)
