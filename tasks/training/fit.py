"""How a training is laid out on this machine: micro-batch, ZeRO stage and recomputation, where the machine leaves them open.

Chosen from what the machine has, and not from what is free just now: another attempt must lay it out in the same way, to end with
the same bits.
"""

import os
from functools import partial
from pathlib import Path

from model.adapters import LowRankAdapter
from model.budget import Plan, lay_out
from model.config import ModelConfig, TrainConfig
from model.errors import InputError
from model.machine import TrainingMachine, needed_stages, without_effect
from model.train_spec import TrainSpec

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
LIBRARIES_BYTES, _OWN_BYTES = 0.45e9, 0.25e9
"""Of a process that has imported torch and DeepSpeed, on a CPU; and what of that each rank has for itself."""


def memory_of_rank(machine: TrainingMachine, nodes: int = 1) -> float | None:
    """Bytes that one rank may use; None if this computer cannot tell. Of several nodes each is taken to be as this one."""
    if machine.memory_gigabytes:
        return machine.memory_gigabytes * 1e9
    if machine.device == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
    if not hasattr(os, "sysconf"):
        return None
    total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    total = total if limit == "max" else min(total, float(limit))
    return total / max(1, machine.ranks // max(1, nodes)) - LIBRARIES_BYTES


def lay_out_training(
    model: ModelConfig,
    train: TrainConfig,
    vocabulary_size: int,
    machine: TrainingMachine,
    memory_bytes: float | None,
    *,
    window_length: int | None = None,
    windows_per_row: int = 1,
    isolate_documents: bool = False,
    adapter: LowRankAdapter | None = None,
) -> Plan:
    """The layout of a training on ranks with so much memory each; what the machine says is kept.

    Args:
        machine: with its ranks and its device; one rank, and a CPU, where they are open.
        memory_bytes: None if nobody knows.
        window_length: tokens of a training window, if fewer than the model's context.
        windows_per_row: windows that stay together.
        isolate_documents: whether a token attends to its own document only, whatever the training says.
        adapter: what is trained beside frozen weights; the weights themselves if None.
    """
    is_quantized = adapter is not None and adapter.base == "nf4"
    ranks, length = machine.ranks or 1, window_length or model.context_length
    mode = machine.activation_checkpointing
    layout = partial(
        lay_out,
        model,
        vocabulary_size,
        windows=max(1, train.tokens_per_batch // length // windows_per_row // ranks) * windows_per_row,
        windows_per_row=windows_per_row,
        window_length=length,
        dtype=train.dtype,
        optimizer=train.optimizer,
        ranks=ranks,
        memory_bytes=memory_bytes,
        averaging=bool(train.averaging),
        on_cpu=machine.device != "cuda",
        zero_stage=None if machine.zero_stage == "auto" else machine.zero_stage,
        # Compiled blocks, pairs of different lengths on each rank, and weights in four bits do not work at stage 3.
        highest_stage=2 if machine.compile is True or windows_per_row > 1 or is_quantized else 3,
        lowest_stage=max(needed_stages(machine.deepspeed).values(), default=0),
        isolate_documents=isolate_documents or train.isolate_documents,
        beside=adapter.beside(model) if adapter else None,
    )
    return layout(
        micro_batch=machine.windows_per_micro_batch * windows_per_row,
        recompute="none" if isinstance(mode, int) else None if mode == "auto" else mode,
        recomputed_block=mode if isinstance(mode, int) else 0,
    )


def lay_out_spec(spec: TrainSpec, memory_bytes: float | None) -> Plan:
    """The layout of a training that is described already."""
    return lay_out_training(
        spec.model,
        spec.train,
        spec.vocabulary_size,
        spec.machine,
        memory_bytes,
        window_length=spec.window_length,
        windows_per_row=spec.objective.windows_per_row,
        isolate_documents=spec.objective.isolate_documents,
        adapter=spec.adapter,
    )


def settled(spec: TrainSpec, nodes: int = 1, *, is_elsewhere: bool = False) -> TrainSpec:
    """The training with its layout chosen, on so many computers.

    Args:
        is_elsewhere: whether another computer takes part, whose memory nobody knows here.

    Raises:
        InputError: if it needs far more memory than this computer has, and no other one takes part; if a key of machine.deepspeed
            has no effect in it; or if its base cannot be cut up as ZeRO stage 3 does.
    """
    if spec.machine.zero_stage == 3 and spec.adapter and spec.adapter.base == "nf4":
        raise InputError(
            "machine.zero_stage 3 cuts up weights that are numbers, and finetune.adapter.base nf4 holds them in four bits: set "
            "machine.zero_stage to 2"
        )
    memory_bytes = memory_of_rank(spec.machine, nodes)
    plan = lay_out_spec(spec, memory_bytes)
    if not is_elsewhere and (told := want_of_memory(plan, memory_bytes, spec.machine)):
        raise InputError(told)
    if told := without_effect(spec.machine.deepspeed, plan.zero_stage):
        raise InputError(f"machine.{told}")
    chosen = {"windows_per_micro_batch": plan.micro_batch // spec.objective.windows_per_row}
    machine = spec.machine
    if machine.zero_stage == "auto":
        chosen["zero_stage"] = plan.zero_stage
    update = {**machine.model_dump(), **chosen}
    if machine.activation_checkpointing == "auto":
        update["activation_checkpointing"] = plan.recompute
    return spec.model_copy(update={"machine": TrainingMachine.model_validate(update)})


_HOPELESS = 1.2
"""Times the memory that there is: on a CPU, what is foretold is right to a sixth."""


def want_of_memory(plan: Plan, memory_bytes: float | None, machine: TrainingMachine) -> str:
    """What to say of a layout that needs far more than a rank has; empty if it may fit.

    On CUDA only what surely exists is counted, since the rest was measured on CPUs; of what is offloaded to the host nothing is
    known.
    """
    keys = machine.deepspeed.get("zero_optimization", {})
    places = [keys[name]["device"] for name in needed_stages(machine.deepspeed) if name.startswith("offload")]
    # On a CPU the memory of the host is the same.
    if memory_bytes is None or (places and machine.device == "cuda"):
        return ""
    needs, has = float(plan.memory.total), memory_bytes
    if machine.device == "cuda":
        needs = float(plan.memory.weights + plan.memory.optimizer)
    elif not machine.memory_gigabytes:
        needs, has = needs + _OWN_BYTES, has + LIBRARIES_BYTES
    if needs <= (1.0 if machine.device == "cuda" else _HOPELESS) * has:
        return ""
    needed, there = (
        f"{value / 1e9:,.1f} GB" if value > 1e8 else f"{value / 1e6:,.1f} MB" for value in (needs, has)
    )
    return (
        f"training needs about {needed} on each rank, which has {there}: take a smaller model, more ranks (machine.ranks; each then "
        "holds less), or another device; if there is more memory than that, say so in machine.memory_gigabytes"
    )
