"""Deployments, the work pool and the automation that `serve` puts on its server. Importing this module imports Prefect."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import EntrypointType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists
from prefect.schedules import Schedule
from prefect.states import StateType

from flows.flow import evaluate, finetune, pretrain, retrain
from flows.recipe import AnyRecipe, Recipe
from flows.retrain import check_recipe
from tasks.errors import InputError

SILENCE_SECONDS = 75
_AUTOMATION = "Runs without a heartbeat have crashed"


async def create_work_pool(pool: str, working_folder: Path) -> None:
    """A pool of local processes whose runs start in `working_folder`, by `flows.engine`."""
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    properties["command"]["default"] = f"{sys.executable} -m flows.engine"
    properties["working_dir"]["default"] = str(working_folder)
    # What a flow prints would end in a pipe of the worker, and break when the worker is killed.
    properties["stream_output"]["default"] = False
    async with get_client() as client:
        try:
            await client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template), overwrite=True)
        except ObjectAlreadyExists:
            return


async def create_automation() -> None:
    """Mark runs as crashed whose flow process sends no heartbeat any more."""
    states = ("Completed", "Failed", "Cancelled", "Crashed", "Scheduled")
    automation = AutomationCore(
        name=_AUTOMATION,
        description="The process of a run tells every 30 seconds that it is alive.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{state}" for state in states)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},  # type: ignore[arg-type]
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENCE_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message="its process sends no heartbeat any more: start it again, it goes on from there",
            )
        ],
    )
    async with get_client() as client:
        known = await client.read_automations_by_name(_AUTOMATION)
        if not known:
            await client.create_automation(automation)


async def create_deployments(recipes: list[AnyRecipe], store: Path, pool: str, schedule: Schedule | None) -> list[str]:
    """Deployments of every recipe; returns their names.

    A schedule is for retrain; without one, what was set in the UI stays.

    Raises:
        InputError: if there is a schedule and no recipe can be retrained.
    """
    names = []

    async def deploy(flow: Any, name: str, parameters: dict[str, Any], **options: Any) -> None:
        deployment = await flow.ato_deployment(
            name, parameters=parameters, work_pool_name=pool, entrypoint_type=EntrypointType.MODULE_PATH,
            description=(flow.description or "").split("\n\n")[0], tags=["scratchlm"], **options,
        )  # fmt: skip
        await deployment.aapply()
        names.append(f"{flow.name}/{name}")

    at = {"store": str(store)}
    fault = None
    for recipe in recipes:
        given = {"recipe": recipe.model_dump(mode="json", exclude_unset=True), **at}
        if not isinstance(recipe, Recipe):
            await deploy(finetune, recipe.name, given)
            continue
        await deploy(pretrain, recipe.name, given)
        try:
            check_recipe(recipe)
        except InputError as error:
            fault = error
            continue
        once = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
        await deploy(retrain, recipe.name, given, concurrency_limit=once, **({"schedule": schedule} if schedule else {}))
    if schedule and fault and not any(name.startswith("retrain/") for name in names):
        raise fault
    await deploy(evaluate, "any", {"model": "latest", **at})
    return names
