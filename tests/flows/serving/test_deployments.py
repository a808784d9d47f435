"""deployments/prefect.yaml says what `serve` deploys."""

import yaml

from flows.recipe.recipe import FinetuneRecipe, Recipe
from flows.retrain import check_recipe
from tests.conftest import ROOT


def test_the_file_fits_the_flows():
    from prefect.flows import load_flow_from_entrypoint

    deployments = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    assert [deployment["entrypoint"] for deployment in deployments] == [
        "flows.prefect_flows.pretrain",
        "flows.prefect_flows.retrain",
        "flows.prefect_flows.finetune",
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
