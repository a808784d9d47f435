"""How a training is laid out on this machine: micro-batch, ZeRO stage and recomputation, where the machine leaves them open.

Chosen from what the machine has, and not from what is free just now: another attempt must lay it out in the same way, to end with
the same bits.
"""

import os
from pathlib import Path

from model.budget import Plan, lay_out
from model.machine import TrainingMachine
from model.train_spec import TrainSpec

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
LIBRARIES_BYTES = 0.45e9
"""Of a process that has imported torch and DeepSpeed, on a CPU."""


def memory_of_rank(machine: TrainingMachine) -> float | None:
    """Bytes that one rank may use; None if this computer cannot tell."""
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
    return total / max(1, machine.ranks) - LIBRARIES_BYTES


def lay_out_spec(spec: TrainSpec, memory_bytes: float | None) -> Plan:
    """The layout of a training on ranks with so much memory each; what the machine says is kept."""
    machine, train = spec.machine, spec.train
    mode = machine.activation_checkpointing
    # Every k-th block: what lies between is not worth a formula of its own.
    given = None if mode == "auto" else "none" if isinstance(mode, int) else mode
    rows = spec.objective.windows_per_row
    return lay_out(
        spec.model,
        spec.vocabulary_size,
        windows=max(1, spec.rows_per_batch // machine.ranks) * rows,
        window_length=spec.window_length,
        dtype=train.dtype,
        optimizer=train.optimizer,
        ranks=machine.ranks,
        memory_bytes=memory_bytes,
        averaging=bool(train.averaging),
        on_cpu=machine.device == "cpu",
        micro_batch=machine.windows_per_micro_batch * rows,
        zero_stage=None if machine.zero_stage == "auto" else machine.zero_stage,
        recompute=given,
    )


def settled(spec: TrainSpec) -> TrainSpec:
    """The training with its layout chosen."""
    plan = lay_out_spec(spec, memory_of_rank(spec.machine))
    chosen = {"windows_per_micro_batch": max(1, plan.micro_batch // spec.objective.windows_per_row)}
    machine = spec.machine
    if machine.zero_stage == "auto":
        chosen["zero_stage"] = plan.zero_stage
    update = {**machine.model_dump(), **chosen}
    if machine.activation_checkpointing == "auto":
        update["activation_checkpointing"] = plan.recompute
    return spec.model_copy(update={"machine": TrainingMachine.model_validate(update)})
