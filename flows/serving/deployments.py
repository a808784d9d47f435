"""Deployments, the work pool and the automation that `serve` puts on its server. Importing this module imports Prefect."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import EntrypointType
from prefect.events import DeploymentEventTrigger
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists
from prefect.schedules import Schedule
from prefect.states import StateType
from prefect.workers.process import ProcessWorker

from flows import retrain as retraining
from flows.prefect_flows import PROMOTED_EVENT, evaluate, finetune, pretrain, retrain
from flows.recipe.recipe import AnyRecipe, Recipe
from flows.retrain import check_recipe
from model.errors import InputError

HEARTBEAT_SECONDS = 30
SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
_CRASHED, _CANCELLED = (
    "Runs without a heartbeat have crashed",
    "Cancelled runs without a heartbeat have ended",
)


async def create_work_pool(pool: str, working_folder: Path) -> None:
    """A pool of local processes, if there is none of this name: one that a person edited stays as it is."""
    template = ProcessWorker.get_default_base_job_template()
    # Whoever may start a run of a deployment chooses its parameters, and neither program, environment nor folder.
    job, choices = template["job_configuration"], template["variables"]["properties"]
    job |= _job(working_folder)
    # Into an env that is there Prefect merges what a run brings, also without a variable of that name.
    del job["env"]
    for name in ("env", *_job(working_folder)):
        del choices[name]
    async with get_client() as client:
        try:
            await client.create_work_pool(
                WorkPoolCreate(name=pool, type="process", base_job_template=template)
            )
        except ObjectAlreadyExists:
            return


def _job(working_folder: Path) -> dict[str, Any]:
    """How the process of a run starts: in `working_folder`, by `flows.serving.flow_process` of this environment."""
    return {
        "command": f"{sys.executable} -m flows.serving.flow_process",
        "working_dir": str(working_folder),
        # What a flow prints would end in a pipe of the worker, and break when the worker is killed.
        "stream_output": False,
    }


def dead_runs_trigger() -> EventTrigger:
    """Fires for a run of which nothing at all is heard after a heartbeat.

    Any event of the run counts as a sign of life, its end under whatever name too: flows of
    ours end as Promoted, Refused, Declined or Nothing new. The end of a run that comes within
    a moment of a heartbeat may be received before it; then Prefect refuses to change a final state.
    """
    return _silence({"prefect.flow-run.heartbeat"}, {"prefect.flow-run.*"})


def dead_cancelled_runs_trigger() -> EventTrigger:
    """Fires for a run that was asked to end, and of which nothing is heard after that but being asked again."""
    ends = (*retraining.ENDS, "Completed", "Failed", "Cancelled", "Crashed", "heartbeat")
    return _silence({"prefect.flow-run.Cancelling"}, {f"prefect.flow-run.{end}" for end in ends})


def _silence(after: set[str], expect: set[str]) -> EventTrigger:
    return EventTrigger(
        after=after,
        expect=expect,
        match={"prefect.resource.id": ["prefect.flow-run.*"]},  # type: ignore[arg-type]
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENCE_SECONDS),
    )


async def create_automations() -> None:
    """End runs whose flow process sends no heartbeat any more. An automation that is there already stays as it is."""
    message = "its process sends no heartbeat any more: start it again, it goes on from there"
    wanted = (
        (_CRASHED, dead_runs_trigger(), StateType.CRASHED),
        (_CANCELLED, dead_cancelled_runs_trigger(), StateType.CANCELLED),
    )
    async with get_client() as client:
        for name, trigger, state in wanted:
            if await client.read_automations_by_name(name):
                continue
            await client.create_automation(
                AutomationCore(
                    name=name,
                    description=f"The process of a run tells every {HEARTBEAT_SECONDS} seconds that it is alive.",
                    trigger=trigger,
                    actions=[ChangeFlowRunState(state=state, message=message)],
                )
            )


def promoted_trigger(name: str) -> DeploymentEventTrigger:
    """Starts a deployment with the run of the new champion when a champion of this recipe name is made."""
    return DeploymentEventTrigger(
        name=f"champion of {name} promoted",
        expect={PROMOTED_EVENT},
        match={"prefect.resource.id": f"scratchlm.champion.{name}"},  # type: ignore[arg-type]
        parameters={"model": "{{ event.payload.run }}"},
    )


async def create_deployments(
    recipes: list[AnyRecipe], store: Path, pool: str, schedule: Schedule | None
) -> list[str]:
    """Deployments of every recipe; returns their names.

    A schedule is for retrain; without one, what was set in the UI stays. A champion that is
    made starts evaluate/NAME, with the benchmarks of the recipe.

    Raises:
        InputError: if there is a schedule and no recipe can be retrained.
    """
    names = []

    async def deploy(flow: Any, name: str, parameters: dict[str, Any], **options: Any) -> None:
        deployment = await flow.ato_deployment(
            name,
            parameters={**parameters, "store": str(store)},
            work_pool_name=pool,
            entrypoint_type=EntrypointType.MODULE_PATH,
            description=(flow.description or "").split("\n\n")[0],
            tags=["scratchlm"],
            **options,
        )
        await deployment.aapply()
        names.append(f"{flow.name}/{name}")

    fault = None
    for recipe in recipes:
        given = {"recipe": recipe.model_dump(mode="json", exclude_unset=True)}
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
        at = {"schedule": schedule} if schedule else {}
        await deploy(retrain, recipe.name, given, concurrency_limit=once, **at)
        benchmarks = {"benchmarks": recipe.evaluate_model.model_dump(mode="json"), "model": recipe.name}
        await deploy(evaluate, recipe.name, benchmarks, triggers=[promoted_trigger(recipe.name)])
    if schedule and fault and not any(name.startswith("retrain/") for name in names):
        raise fault
    await deploy(evaluate, "any", {"model": "latest"})
    return names
