"""One rank of a training, and a training in this process."""

import os
from collections.abc import Callable
from typing import Any

from model.errors import InputError, StageFailed
from model.imports import uncollected
from model.machine import TrainingMachine
from model.train_spec import TrainSpec
from tasks.engine.progress import progress
from tasks.engine.ranks import Rank, only_rank


def refuse_too_large(error: Exception, machine: TrainingMachine, needs: str = "") -> None:
    """Say what to do about a failure, if it is for want of memory.

    Args:
        needs: what was foretold of its memory.

    Raises:
        InputError: if it is.
    """
    import torch

    sentence = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in sentence:
        raise InputError(
            f"training does not fit into memory ({str(error).split(chr(10))[0][:300]}){needs}: lower "
            f"machine.windows_per_micro_batch (now {machine.windows_per_micro_batch}), or set machine.activation_checkpointing: "
            "full, or a higher machine.zero_stage on more ranks, or say in machine.memory_gigabytes what there is"
        ) from error


def _needs(spec: TrainSpec) -> str:
    from tasks.training.fit import lay_out_spec

    return f"; it was estimated to need {lay_out_spec(spec, None).memory.total / 1e9:.1f} GB on each rank"


def train_as_rank(arguments: dict[str, Any], rank: Rank) -> dict[str, Any]:
    """Train as one of the ranks that torchrun started; returns the figures of the training.

    Args:
        arguments: a `TrainSpec`.

    Raises:
        InputError: if recipe or data make it impossible, or memory does.
        StageFailed: if it was asked to stop; a checkpoint was written first.
    """
    spec = TrainSpec.model_validate(arguments)
    if spec.machine.device == "cpu" and not spec.is_compiled:
        # DeepSpeed would compile an optimizer that is not used, and take a second for it.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    with uncollected():
        from model import train as training

    try:
        return training.train(spec, rank.progress, rank.enter)
    except training.Stopped as stopped:
        raise StageFailed(str(stopped), retryable=True) from None
    except Exception as error:
        refuse_too_large(error, spec.machine, _needs(spec))
        raise


def train_here(spec: TrainSpec, on_step: Callable[..., None] = progress) -> dict[str, Any]:
    """Train in this process as rank 0 of 1, without torchrun: for a debugger, and to try how fast it is.

    Raises:
        KeyboardInterrupt: if it was asked to stop; a checkpoint was written first.
    """
    from model import train as training

    before = dict(os.environ)
    os.environ.update(only_rank(), DS_ACCELERATOR=spec.machine.device)
    try:
        return training.train(spec, on_step)
    except training.Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from None
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
