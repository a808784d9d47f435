"""What a training needs of a machine, before anything is bought: memory, hours and money, for hardware that need not be here."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flows.recipe.recipe import Recipe
from flows.runs.execute import Place
from flows.runs.speed import ASSUMED_SHARE_OF_PEAK, probed
from model.budget import (
    ACCELERATORS,
    Accelerator,
    Parameters,
    Plan,
    accelerator_named,
    count,
    recomputed_flops_per_token,
)
from model.config import flops_per_token
from model.errors import InputError
from model.machine import TrainingMachine
from tasks.engine.on_ranks import has_ranks_elsewhere
from tasks.training.fit import lay_out_training, memory_of_rank
from tasks.training.settings import TrainModelConfig, check_machine, machine_of_training


@dataclass(frozen=True)
class Estimate:
    """What a training needs.

    Attributes:
        memory_bytes: that one rank has; None if nobody knows.
        seconds: of all steps; None if it was not tried.
        is_measured: whether that is of steps that were tried here.
        peak_bytes: what the process that tried them held at its peak; None where none was tried, several ranks share the work, or it is not
            a CPU, whose memory is that of the process.
        fault: why they could not be tried; empty if they could, or need not.
    """

    parameters: Parameters
    tokens: int
    steps: int
    flops: float
    dtype: str
    device: str
    ranks: int
    plan: Plan
    memory_bytes: float | None
    seconds: float | None
    is_measured: bool
    dollars: float | None
    fault: str = ""
    peak_bytes: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "parameters": self.parameters.total,
            "tokens": self.tokens,
            "tokens_per_parameter": round(self.tokens / self.parameters.total, 2),
            "steps": self.steps,
            "flops": self.flops,
            "dtype": self.dtype,
            "device": self.device,
            "ranks": self.ranks,
            "windows_per_micro_batch": self.plan.micro_batch,
            "zero_stage": self.plan.zero_stage,
            "activation_checkpointing": self.plan.recompute,
            "memory_bytes": self.plan.memory.total,
            "memory_bytes_of_rank": self.memory_bytes,
            "peak_bytes": self.peak_bytes,
            "fits": self.plan.fits,
            "seconds": self.seconds,
            "is_measured": self.is_measured,
            "dollars": self.dollars,
            "fault": self.fault,
        }


def parse_hardware(text: str) -> tuple[Accelerator, int]:
    """A kind of device and how many of it, from words such as h100x8.

    Raises:
        InputError: if there is no such kind.
    """
    matched = re.fullmatch(r"(.*?)(?:x(\d+))?", text.strip().lower())
    kind = accelerator_named(matched[1]) if matched else None
    if matched is None or kind is None or matched[2] == "0":
        known = ", ".join(each.name.replace(" ", "-") for each in ACCELERATORS)
        raise InputError(f"--on {text}: say a kind of device and how many, such as h100x8; known are {known}")
    return kind, int(matched[2] or 1)


def estimate(
    recipe: Recipe, place: Place, hardware: tuple[Accelerator, int] | None, tell: Callable[[str], None]
) -> Estimate:
    """What the training of a recipe needs, here or on other hardware.

    Args:
        hardware: kind and number of devices; None for this machine, where some steps are tried.
        tell: called before they are.
    """
    train, vocabulary_size = recipe.train_model, recipe.train_tokenizer.vocabulary_size
    training = TrainModelConfig(model=recipe.model, train=train)
    machine: TrainingMachine = recipe.machine
    if hardware:
        kind, ranks = hardware
        machine = machine.model_copy(update={"device": "cuda", "ranks": ranks})
        check_machine(training, machine)
        device = kind.name
        memory_bytes: float | None = kind.bytes
    else:
        machine = machine_of_training(training, recipe.machine)
        ranks, device, memory_bytes = (
            machine.ranks,
            machine.device,
            memory_of_rank(machine, recipe.machine.nodes),
        )
    plan = lay_out_training(recipe.model, train, vocabulary_size, machine, memory_bytes)
    per_token = flops_per_token(recipe.model, vocabulary_size)
    tokens = train.n_steps * train.tokens_per_batch
    found, seconds, fault = None, None, ""
    if hardware:
        spent = tokens * (per_token + recomputed_flops_per_token(recipe.model, plan.recompute))
        seconds = spent / (hardware[0].peak * ASSUMED_SHARE_OF_PEAK * ranks)
    elif has_ranks_elsewhere(recipe.machine):
        fault = f"machine.nodes is {recipe.machine.nodes}: what this computer does says nothing of those, --on does"
    elif plan.fits:
        try:
            found = probed(recipe, vocabulary_size, place, tell)
        except InputError as error:
            fault = str(error)
        seconds = found["step_seconds"] * train.n_steps / ranks if found else None
    price = machine.dollars_per_hour
    return Estimate(
        parameters=count(recipe.model, vocabulary_size),
        tokens=tokens,
        steps=train.n_steps,
        flops=float(tokens * per_token),
        dtype=train.dtype,
        device=device,
        ranks=ranks,
        plan=plan,
        memory_bytes=memory_bytes,
        seconds=seconds,
        is_measured=found is not None,
        dollars=price * ranks * seconds / 3600 if price and seconds and plan.fits else None,
        fault=fault,
        peak_bytes=found["peak_memory_bytes"] if found and ranks == 1 and machine.device == "cpu" else None,
    )
