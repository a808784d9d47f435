"""What is deployed: deployments/prefect.yaml, the compose file, and the triggers that `serve` makes."""

import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from flows.recipe.recipe import FinetuneRecipe, Recipe
from flows.retrain import DECLINED, NOTHING_NEW, PROMOTED, REFUSED, check_recipe
from tests.conftest import ROOT

FILE = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())


def test_the_file_fits_the_flows():
    from prefect.flows import load_flow_from_entrypoint

    deployments = FILE["deployments"]
    assert [deployment["entrypoint"] for deployment in deployments] == [
        "flows.prefect_flows.pretrain",
        "flows.prefect_flows.retrain",
        "flows.prefect_flows.finetune",
        "flows.prefect_flows.evaluate",
        "flows.prefect_flows.evaluate",
    ]
    for deployment in deployments:
        flow = load_flow_from_entrypoint(deployment["entrypoint"])
        assert set(deployment["parameters"]) <= set(flow.parameters.properties)
        if flow.name == "finetune":
            FinetuneRecipe.model_validate(deployment["parameters"]["recipe"])
        elif "recipe" in deployment["parameters"]:
            check_recipe(Recipe.model_validate(deployment["parameters"]["recipe"]))
    retrain = deployments[1]
    assert retrain["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert retrain["schedules"]


def test_no_deployment_changes_into_the_folder_of_whoever_deploys():
    # With null or nothing, `prefect deploy` adds a step that does.
    assert [deployment["pull"] for deployment in FILE["deployments"]] == [[]] * len(FILE["deployments"])


@pytest.mark.parametrize(
    "end", [NOTHING_NEW, PROMOTED, REFUSED, DECLINED, "Completed", "Failed", "heartbeat"]
)
def test_a_run_that_ends_under_any_name_is_not_taken_for_dead(end: str):
    from prefect.server.events.schemas.automations import EventTrigger

    from flows.serving.deployments import HEARTBEAT_SECONDS, dead_runs_trigger

    trigger = EventTrigger.model_validate(dead_runs_trigger().model_dump())
    assert trigger.expects(f"prefect.flow-run.{end}")
    assert trigger.within >= 3 * timedelta(seconds=HEARTBEAT_SECONDS)


def test_the_image_builds():
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon answers")
    command = [docker, "compose", "-f", "deployments/compose.yaml", "build"]
    assert subprocess.run(command, cwd=ROOT).returncode == 0


def test_the_compose_file_has_a_server_on_postgresql_and_a_worker():
    services = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text())["services"]
    assert services["server"]["environment"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"].startswith(
        "postgresql+asyncpg"
    )
    assert services["worker"]["command"][:3] == ["prefect", "worker", "start"]
    pools = {deployment["work_pool"]["name"] for deployment in FILE["deployments"]}
    assert services["worker"]["command"][-3] in pools


def test_serve_removes_old_flow_runs_unless_it_is_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from prefect.settings.models.server.services import ServerServicesDBVacuumSettings

    from flows.serving.serve import _environment

    name = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(name, _environment(tmp_path, "127.0.0.1", 4200, "user:password")[name])
    assert "flow_runs" in ServerServicesDBVacuumSettings().enabled_vacuum_types
    monkeypatch.setenv(name, "events")
    assert _environment(tmp_path, "127.0.0.1", 4200, "user:password")[name] == "events"
