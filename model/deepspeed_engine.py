"""DeepSpeed as the trainer uses it: its process group, its configuration, and the module that it calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from model.budget import bucket_elements, count, live_elements
from model.errors import InputError
from model.imports import uncollected, without
from model.loss import token_nats
from model.machine import without_effect
from model.objectives.objective import Objective
from model.optimizer import Together
from model.train_spec import TrainSpec
from model.transformer import Transformer


def _import_deepspeed() -> Any:
    # Its autotuner, which nobody uses here, imports MLflow where there is one, and that takes as long as all else of it.
    with uncollected(), without("mlflow"):
        # Every optimizer of torch imports it.
        import deepspeed
        import torch._dynamo  # noqa: F401
    return deepspeed


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """The group of all ranks while the body runs: gloo on a CPU, else NCCL.

    After a failure NCCL's stays: to end it, each rank waits for all others, which may wait for this one. Whoever tells of the failure
    then ends the process.
    """
    deepspeed = _import_deepspeed()
    from deepspeed.ops import __compatible_ops__

    # The shared-memory op serves inference only, and compiling it costs a minute on a CPU.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", verbose=False)
    try:
        yield
    except BaseException:
        if device == "cpu":
            deepspeed.comm.destroy_process_group()
        raise
    deepspeed.comm.destroy_process_group()


class Learner(nn.Module):
    """A model with what it is trained for, as DeepSpeed calls them."""

    def __init__(self, model: Transformer, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, tokens: Tensor, denominator: float | None = None, **batch: Any) -> Tensor:
        """The loss of a batch divided by `denominator`, a scalar; the nats (B, T) of its `targets` if there is none."""
        if denominator is None:
            return token_nats(self.model, tokens, batch["targets"], batch.get("ends"))
        return self.objective.loss(self.model, {"tokens": tokens, **batch}) / denominator


def _sharding(spec: TrainSpec) -> dict[str, Any]:
    """Keys of ZeRO. Sizes of its buffers follow the model: by default they are those of one of a billion weights."""
    n_weights = count(spec.model, spec.vocabulary_size).total
    bucket = bucket_elements(spec.adapter.beside(spec.model).parameters if spec.adapter else n_weights)
    live = live_elements(spec.model, spec.vocabulary_size)
    sizes = {"reduce_bucket_size": bucket} if spec.zero_stage else {}
    if spec.zero_stage == 3:
        sizes |= {"stage3_max_live_parameters": live, "stage3_max_reuse_distance": live}
    given = spec.machine.deepspeed.get("zero_optimization", {})
    return {
        "stage": spec.zero_stage,
        **{name: size for name, size in sizes.items() if name not in given},
    }


def deepspeed_config(spec: TrainSpec) -> dict[str, Any]:
    """What DeepSpeed is told, with what a person adds under machine.deepspeed.

    Raises:
        InputError: if a person's key says otherwise than the recipe or the machine.
    """
    micro_batch, accumulation = spec.micro_batch
    own: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # DeepSpeed clips at 1.0 unless it is told otherwise.
        "gradient_clipping": spec.train.largest_gradient_norm,
        "zero_optimization": _sharding(spec),
        "zero_allow_untested_optimizer": True,
        # With weights or moments in the memory of the host, too.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        # It waits for the device twice in every micro-batch.
        "timers": {"throughput": {"enabled": False}},
    }
    if spec.train.dtype != "bfloat16":
        own["bf16"] = {"enabled": False}
    else:
        # Weights that are computed with in bfloat16; what the optimizer moves, and gradients that add up, in float32.
        own |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
        if spec.zero_stage == 1:
            # Else the sums of several passes are rounded to bfloat16 on their way, also if there is but one rank.
            own["communication_data_type"] = "fp32"
    if told := without_effect(spec.machine.deepspeed, spec.zero_stage):
        raise InputError(f"machine.{told}")
    return _merged(own, spec.machine.deepspeed, "machine.deepspeed")


def _merged(own: dict[str, Any], added: dict[str, Any], path: str) -> dict[str, Any]:
    merged = dict(own)
    for name, value in added.items():
        at = f"{path}.{name}"
        if isinstance(own.get(name), dict) and isinstance(value, dict):
            merged[name] = _merged(own[name], value, at)
        elif name in own and own[name] != value:
            raise InputError(
                f"{at} is {value!r}, and recipe and machine make it {own[name]!r}: leave it out, and set the field that it follows "
                "from"
            )
        else:
            merged[name] = value
    return merged


@contextmanager
def built_in_shares(spec: TrainSpec) -> Iterator[None]:
    """Models that are built in the body exist in shares, of which each rank has its own, from their first weight on."""
    import deepspeed

    with deepspeed.zero.Init(config_dict_or_path=deepspeed_config(spec)):
        yield


def start_engine(learner: Learner, optimizer: Together, spec: TrainSpec) -> Any:
    """DeepSpeed's engine around a learner; the optimizer then moves what it made of the weights.

    Raises:
        InputError: if a key of machine.deepspeed contradicts the recipe.
    """
    import deepspeed

    try:
        engine, _, _, _ = deepspeed.initialize(
            model=learner, optimizer=optimizer, config=deepspeed_config(spec)
        )
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise InputError(f"machine.deepspeed: {at} is {first['input']!r}: {first['msg']}") from error
    # Angles of positions in bfloat16 would be wrong from some hundreds on; it cast them with the weights.
    learner.model.fill_tables()
    return engine
