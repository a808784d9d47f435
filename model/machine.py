"""The machine that trains: where and how fast, never what. None of it enters a key."""

import os
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field

from model.base_config import Config


class TrainingMachine(Config):
    """Where the model is trained."""

    ranks: int = Field(
        0, ge=0, description="Training processes; 0 takes one for each accelerator, or one on a CPU."
    )
    threads: int = Field(0, ge=0, description="CPU threads of each rank; 0 shares the cores among the ranks.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where tensors live; auto takes cuda if there is one, else cpu. Apple's GPUs (mps) are not used.",
    )
    windows_per_micro_batch: int = Field(
        0,
        ge=0,
        description="Windows in one forward pass of one rank; 0 takes as many as have 16,384 tokens, or fewer if they do not fit.",
    )
    zero_stage: Literal["auto", 0, 1, 2, 3] = Field(
        "auto",
        description="DeepSpeed ZeRO stage. auto: 0 for one rank in float32; else 1, so that each rank holds a share of the "
        "optimizer's state, or 2 or 3 if it does not fit.",
    )
    activation_checkpointing: Literal["auto", "none", "selective", "full"] | Annotated[int, Field(ge=2)] = (
        Field(
            "auto",
            description="What is computed again in the backward pass in place of being kept. selective: all but matrix products and "
            "attention; full: all but the input of each block; a number k: full for every k-th block, none for the others. auto: the first of "
            "them with which it fits into the memory of the device.",
        )
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="Compile each block with torch.compile. auto: on CUDA, but for ZeRO stage 3, with which it does not work.",
    )
    memory_gigabytes: float = Field(
        0.0,
        ge=0,
        description="Memory of one rank that the layout is chosen for, in gigabytes; 0 takes that of the device, or of this computer shared "
        "among the ranks.",
    )
    dollars_per_hour: float = Field(
        0.0, ge=0, description="Price of one rank's device, for `scratchlm estimate`; 0 if nobody pays."
    )
    checkpoint_every_seconds: float = Field(
        30.0,
        ge=0,
        description="Least seconds between two training checkpoints, which are written while training goes on; where the copy that "
        "this begins with takes long, more, so that all together take about 1% of the time at most. 0 saves after every step.",
    )
    keep_checkpoints: int = Field(2, ge=1, description="Number of training checkpoints kept on disk.")
    keep_checkpoint_every_hours: float = Field(
        0.0,
        ge=0,
        description="Hours of which one older checkpoint is kept, too, for as long as the training lasts; 0 keeps none.",
    )
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (),
        description="Where the figures of each step go, too: TensorBoard, Weights & Biases, MLflow (pip install 'scratchlm[trackers]').",
    )
    deepspeed: dict[str, Any] = Field(
        {},
        description="More of DeepSpeed's own configuration, such as zero_optimization: {overlap_comm: true}; what follows from recipe "
        "and machine cannot be changed here.",
    )


@cache
def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
