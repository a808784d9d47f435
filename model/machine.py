"""The machine that trains: where and how fast, never what. None of it enters a key."""

import os
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from model.base_config import Config

_MAY_BE_ADDED = {
    "deepspeed": frozenset(
        {
            "aio",
            "comms_logger",
            "flops_profiler",
            "memory_breakdown",
            "wall_clock_breakdown",
            "zero_optimization",
        }
    ),
    "deepspeed.zero_optimization": frozenset(
        {
            "allgather_bucket_size",
            "allgather_partitions",
            "contiguous_gradients",
            "log_trace_cache_warnings",
            "offload_optimizer",
            "offload_param",
            "overlap_comm",
            "reduce_bucket_size",
            "reduce_scatter",
            "round_robin_gradients",
            "stage3_allgather_sequential",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
            "stage3_module_granularity_threshold",
            "stage3_param_persistence_threshold",
            "stage3_prefetch_bucket_size",
            "stage3_use_all_reduce_for_fetch_params",
            "sub_group_size",
            "zero_hpz_partition_size",
        }
    ),
}
"""What decides where and how fast. Other keys, such as gradient_allreduce_op or zero_quantized_gradients, change what is learnt, and
no key of a result would tell."""

_FOLLOWS = {
    "deepspeed": frozenset(
        {
            "bf16",
            "data_types",
            "gradient_accumulation_steps",
            "gradient_clipping",
            "steps_per_print",
            "timers",
            "train_micro_batch_size_per_gpu",
            "zero_allow_untested_optimizer",
            "zero_force_ds_cpu_optimizer",
        }
    ),
    "deepspeed.zero_optimization": frozenset({"stage"}),
    "deepspeed.bf16": frozenset({"enabled"}),
    "deepspeed.data_types": frozenset({"grad_accum_dtype"}),
    "deepspeed.timers": frozenset({"throughput"}),
}
"""What recipe and machine decide: it may be repeated, and not contradicted (`model.deepspeed_engine`)."""


LEAST_STAGE = {"offload_optimizer": 1, "offload_param": 3, "zero_hpz_partition_size": 3}
"""Keys of deepspeed.zero_optimization that DeepSpeed passes over at lower stages."""


def _asks_for_something(name: str, value: Any) -> bool:
    """Whether one of these keys is more than what DeepSpeed does without it."""
    if name == "zero_hpz_partition_size":
        return bool(value != 1)
    return isinstance(value, dict) and value.get("device", "none") != "none"


def needed_stages(given: dict[str, Any]) -> dict[str, int]:
    """The least ZeRO stage of each key of `deepspeed` that does something from one on."""
    keys = given.get("zero_optimization", {})
    return {
        name: least
        for name, least in LEAST_STAGE.items()
        if name in keys and _asks_for_something(name, keys[name])
    }


def without_effect(given: dict[str, Any], zero_stage: int) -> str:
    """What to say of a key of `deepspeed` that does nothing at a ZeRO stage; empty if there is none."""
    for name, least in needed_stages(given).items():
        if zero_stage < least:
            return (
                f"deepspeed.zero_optimization.{name} does nothing at ZeRO stage {zero_stage}: set zero_stage to "
                f"{least}{' or more' if least < 3 else ''}, or leave it out"
            )
    return ""


def _check_deepspeed(given: dict[str, Any], path: str = "deepspeed") -> None:
    allowed, follows = _MAY_BE_ADDED.get(path, frozenset()), _FOLLOWS.get(path, frozenset())
    for name, value in given.items():
        if name not in allowed | follows:
            others = f"; what may be added is {', '.join(sorted(allowed))}" if allowed else ""
            raise ValueError(
                f"{path}.{name} is unknown, or may change what is learnt, which the recipe decides, and no machine: leave it out{others}"
            )
        at = f"{path}.{name}"
        if at in _FOLLOWS or at in _MAY_BE_ADDED:
            if not isinstance(value, dict):
                raise ValueError(f"{at} is {value!r} and not keys with values: give it some, or leave it out")
            _check_deepspeed(value, at)
        if name.startswith("offload_"):
            _check_offload(value, at)


def _check_offload(given: Any, path: str) -> None:
    """Weights and moments stay in memory: what DeepSpeed swaps to a disk is not there to be saved or read back."""
    keys = given if isinstance(given, dict) else {}
    if keys.get("device", "none") not in ("none", "cpu"):
        raise ValueError(f"{path}.device is {keys['device']!r}: take cpu, the memory of the host, or none")
    for name, usual in (("ratio", 1.0), ("super_offload", False)):
        if keys.get(name, usual) != usual:
            raise ValueError(
                f"{path}.{name} is {keys[name]!r}, which works with DeepSpeed's own Adam only: leave it out"
            )


class TrainingMachine(Config):
    """Where the model is trained."""

    ranks: int = Field(
        0,
        ge=0,
        description="Training processes; 0 takes one for each accelerator, but no more than can share a batch, or one on a CPU.",
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
        "optimizer's state, or 2 or 3 if it does not fit, or if keys of deepspeed need it.",
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
        description="Compile each block with torch.compile. auto: on CUDA, but for ZeRO stage 3, with which it does not work. "
        "A CPU reads isolated documents, conversations and preferences one after another, which does not compile.",
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

    @field_validator("deepspeed")
    @classmethod
    def _is_allowed(cls, given: dict[str, Any]) -> dict[str, Any]:
        _check_deepspeed(given)
        return given

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        # Where the stage is chosen later, this is asked for then.
        if self.zero_stage != "auto" and (told := without_effect(self.deepspeed, self.zero_stage)):
            raise ValueError(told)
        return self


@cache
def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_rank(machine: TrainingMachine) -> int:
    """CPU threads of this process, which torchrun started as one of LOCAL_WORLD_SIZE on this computer."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return machine.threads or max(1, available_cores() // ranks_here)
