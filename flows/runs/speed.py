"""How fast the training of a recipe goes, and what it needs here: tried for some seconds, or by rates where it cannot be."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flows.recipe.recipe import Recipe
from flows.runs.execute import Place
from model.budget import ACCELERATORS, Plan
from model.config import flops_per_token
from model.errors import InputError
from model.files import read_record, write_record
from model.machine import TrainingMachine, available_cores
from tasks.engine.code import code_digests
from tasks.engine.keys import digest
from tasks.engine.on_ranks import has_ranks_elsewhere
from tasks.engine.resolve import library_version
from tasks.training.fit import LIBRARIES_BYTES, lay_out_training, memory_of_rank, want_of_memory
from tasks.training.probe import probe_training
from tasks.training.settings import TrainModelConfig, machine_of_training

ASSUMED_SHARE_OF_PEAK = 0.4
"""Of the peak of a device that is not here. torchtitan reports 33 to 39% for 8 billion parameters on H100s; this project has not
been measured on CUDA."""
_ASSUMED_DEVICE = next(each for each in ACCELERATORS if each.name == "a100")
_CPU_FLOPS_PER_SECOND = 60e9
"""Of a training on a CPU that was not tried: what two cores of 2.5 GHz came to in the demo."""
_PYTHON_SECONDS = 0.0045
"""Of the probe's piece of work on text, on the core on which the rates of the stages were measured (2.5 GHz)."""
_WORTH_A_PROBE_SECONDS = 20.0
_WITHOUT_SPEED = {
    "dollars_per_hour",
    "log_to",
    "checkpoint_every_seconds",
    "keep_checkpoints",
    "keep_checkpoint_every_hours",
}
"""Fields of a machine that say nothing of how fast it trains."""


_NVIDIA = Path("/proc/driver/nvidia/gpus")
"""Has an entry for each device that the driver of NVIDIA serves."""


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Speed:
    """How fast a training goes.

    Attributes:
        start_seconds: until its first step.
        step_seconds: of one step, by all ranks.
        token_seconds: of one token that is read and not learnt from, by all ranks that read.
        slower: how many times longer work on text takes here than where the rates of the stages were measured.
        memory_bytes: of this computer, of all ranks that run here.
        caution: what a person should know of these figures; empty if there is nothing.
    """

    start_seconds: float
    step_seconds: float
    token_seconds: float
    slower: float
    memory_bytes: float
    caution: str = ""


def probed(
    recipe: Recipe, vocabulary_size: int, place: Place, tell: Callable[[str], None] | None
) -> dict[str, float] | None:
    """What a few seconds of the training took here; None if it was never tried and is not to be now.

    Args:
        tell: called before it is tried; None leaves it out.

    Raises:
        InputError: if it cannot be done here.
    """
    config = TrainModelConfig(model=recipe.model, train=recipe.train_model)
    neutral = config.train.model_copy(
        update={"tokens": config.train.tokens_per_batch, "seed": 0, "evaluations": 0}
    )
    # The machine as it is described: for what is only looked up, no device is looked for.
    layout, memory_bytes = _laid_out(recipe, vocabulary_size, place.machine)
    key = digest(
        {
            "model": config.model,
            "train": neutral,
            "vocabulary_size": vocabulary_size,
            "machine": place.machine.model_dump(include=set(TrainingMachine.model_fields) - _WITHOUT_SPEED),
            # A job of a cluster may have fewer cores than its host, or less memory.
            "host": [socket.gethostname(), available_cores(), memory_bytes],
            "layout": [layout.micro_batch, layout.zero_stage, layout.recompute],
            # What was measured with other code, or other libraries, says nothing of this.
            "code": code_digests("tasks.training.probe"),
            "libraries": {name: library_version(name) for name in ("torch", "deepspeed")},
            # What torch takes for its attention where it is installed.
            "attention": {name: _version(name) for name in ("flash-attn-3", "flash-attn-4", "flash-attn")},
            "devices": [
                os.environ.get("CUDA_VISIBLE_DEVICES"),
                *sorted(path.name for path in _NVIDIA.glob("*")),
            ],
        }
    )
    path = place.store.root / "probes" / f"{key}.json"
    try:
        return read_record(path)
    except (OSError, ValueError):
        if tell is None:
            return None
    tell("trying how fast this machine trains: a few seconds of it")
    figures = probe_training(config, vocabulary_size, place.machine.training())
    path.parent.mkdir(exist_ok=True)
    write_record(path, figures)
    return figures


def _laid_out(
    recipe: Recipe, vocabulary_size: int, machine: TrainingMachine, nodes: int = 1
) -> tuple[Plan, float | None]:
    """The layout of the training, and the memory of a rank that it is chosen for."""
    memory_bytes = memory_of_rank(machine, nodes)
    train = recipe.train_model
    return lay_out_training(recipe.model, train, vocabulary_size, machine, memory_bytes), memory_bytes


def _machine(recipe: Recipe, place: Place) -> TrainingMachine:
    """The machine as its training will have it."""
    return machine_of_training(TrainModelConfig(model=recipe.model, train=recipe.train_model), place.machine)


def check_memory(recipe: Recipe, place: Place) -> None:
    """Refuse a training that needs far more memory than this computer has, if it is to do it.

    Raises:
        InputError: with what it needs, and what there is.
    """
    if not has_ranks_elsewhere(place.machine):
        size, machine = recipe.train_tokenizer.vocabulary_size, _machine(recipe, place)
        if told := want_of_memory(*_laid_out(recipe, size, machine), machine):
            raise InputError(told)


def _untried(why: str, assumed: str) -> str:
    return f"one rank alone could not try the training ({why}); its time is that of {assumed}"


def foresee_training(
    recipe: Recipe,
    vocabulary_size: int,
    place: Place,
    tell: Callable[[str], None] | None,
    *,
    is_waiting: bool,
) -> Speed:
    """How fast the training will go. It is tried here if it is long, and if this computer is to do it.

    Args:
        tell: called before it is tried; None tries nothing.
        is_waiting: whether it is to be done at all; if it is not, neither devices are looked for nor anything is tried.

    Raises:
        InputError: if the machine is impossible, or its only rank cannot train here.
    """
    train = recipe.train_model
    machine: TrainingMachine = _machine(recipe, place) if is_waiting else place.machine
    ranks, nodes = max(1, machine.ranks), max(1, place.machine.nodes)
    all_ranks = max(1, place.machine.training().ranks) if is_waiting else ranks
    # Computers that were joined by hand train, and read nothing else.
    readers = max(1, all_ranks // nodes) if place.machine.is_local else all_ranks
    layout, _ = _laid_out(recipe, vocabulary_size, machine, nodes)
    on_host = layout.memory.total if machine.device == "cpu" else 0.0
    one_rank_bytes = LIBRARIES_BYTES + on_host
    flops = train.tokens_per_batch * flops_per_token(recipe.model, vocabulary_size)
    if machine.device == "cuda":
        one_rank_seconds = flops / (_ASSUMED_DEVICE.peak * ASSUMED_SHARE_OF_PEAK)
        assumed = f"{ASSUMED_SHARE_OF_PEAK:.0%} of the peak of an {_ASSUMED_DEVICE.name.upper()} on each rank"
    else:
        # Ranks of one computer share the cores that this is of.
        one_rank_seconds = flops / _CPU_FLOPS_PER_SECOND * ranks / nodes
        assumed = "two cores"
    probe, caution = None if is_waiting else probed(recipe, vocabulary_size, place, None), ""
    alone = machine.model_copy(update={"ranks": 1, "zero_stage": "auto"}) if ranks > 1 else machine
    if is_waiting and train.n_steps * one_rank_seconds / ranks > _WORTH_A_PROBE_SECONDS:
        if has_ranks_elsewhere(place.machine):
            caution = (
                f"the training is not tried, since machine.nodes is {nodes}; its time is that of {assumed}"
            )
        # As it is tried: one rank, in all the memory that there is.
        elif told := want_of_memory(*_laid_out(recipe, vocabulary_size, alone), alone):
            caution = told if ranks == 1 else _untried(told, assumed)
        else:
            try:
                probe = probed(recipe, vocabulary_size, place, tell)
            except InputError as error:
                # One rank is the training itself; of several each has a share of what one alone could not do.
                if ranks == 1:
                    raise
                caution = _untried(str(error), assumed)
    if probe:
        one_rank_seconds, one_rank_bytes = probe["step_seconds"], probe["peak_memory_bytes"]
    return Speed(
        start_seconds=probe["start_seconds"] if probe else 5.0,
        step_seconds=one_rank_seconds / ranks,
        token_seconds=one_rank_seconds / train.tokens_per_batch / 3 / readers,
        slower=probe["python_seconds"] / _PYTHON_SECONDS if probe else 1.0,
        memory_bytes=one_rank_bytes * -(-ranks // nodes),
        caution=caution,
    )
