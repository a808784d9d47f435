"""Low-rank adapters: a few trained matrices beside frozen weights (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353)."""

from typing import Any

import torch
from torch import Tensor

from model.config import AdapterConfig
from model.transformer import Transformer

NAME = "default"


def lora_config(config: AdapterConfig, **fields: Any) -> Any:
    """The configuration of `peft`."""
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank, lora_alpha=config.alpha, use_dora=config.kind == "dora", lora_dropout=0.0, bias="none",
        **{"target_modules": list(config.targets), **fields},
    )  # fmt: skip


def add_adapters(model: Transformer, config: AdapterConfig, seed: int) -> None:
    """Put adapters beside the matrices of every block, and freeze everything else."""
    from peft import inject_adapter_in_model

    # On every rank and in every process the same first weights, whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(lora_config(config), model, adapter_name=NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def adapter_weights(model: Transformer) -> dict[str, Tensor]:
    """The trained weights of the adapters, under the names of `peft`."""
    kept = {}
    for name, value in model.state_dict().items():
        if "lora_" in name:
            # `peft` keeps the name of the adapter out of its files, and the magnitude of DoRA without a last part.
            short = name.replace(f".{NAME}.", ".").replace(f".{NAME}", "")
            kept[short.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")] = value.detach().cpu().contiguous()
    return kept


def load_adapters(model: Transformer, config: AdapterConfig, weights: dict[str, Tensor]) -> None:
    """Put adapters with these weights, named as `adapter_weights` names them, beside the matrices of a model.

    Raises:
        ValueError: if a weight is missing, too many, or of another shape.
    """
    add_adapters(model, config, seed=0)
    own = dict(zip(adapter_weights(model), (name for name in model.state_dict() if "lora_" in name), strict=True))
    state = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in own or name not in weights or state[own[name]].shape != weights[name].shape:
            raise ValueError(f"the weight {name} is missing, has no place, or has another shape")
    with torch.no_grad():
        for name, value in weights.items():
            state[own[name]].copy_(value)


def merge_adapters(model: Transformer) -> None:
    """Add the adapters to the weights and take them away: a plain model that computes the same."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()  # type: ignore[operator]
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
