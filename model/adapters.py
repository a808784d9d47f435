"""Low-rank adapters: a few trained matrices beside frozen weights (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353).

torch and peft are imported where they are used: the shape of an adapter is read by every plan.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from model.base_config import Config
from model.budget import Beside, matrix_shapes
from model.config import ModelConfig
from model.errors import InputError
from model.quantized import NF4_BYTES, alone, holder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model.transformer import Transformer

ADAPTER_WEIGHTS = "adapter.safetensors"
_NAME = "default"

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LowRankAdapter(Config):
    """Low-rank adapters beside the frozen matrices of a base."""

    kind: Literal["lora", "dora"] = Field(
        "lora", description="lora: low-rank updates; dora: their direction, and a trained length."
    )
    rank: int = Field(16, ge=1, description="Rank of the update of each matrix.")
    alpha: int = Field(32, ge=1, description="Scale of the update; it is multiplied by alpha / rank.")
    targets: tuple[Target, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Matrices of each block that get an adapter.",
    )
    base: Literal["full", "nf4"] = Field(
        "full",
        description="How the frozen matrices of the blocks are held meanwhile: full, in the training's dtype; nf4, in four bits (QLoRA, for "
        "lora only, with the extra qlora). What is trained is merged into the base as it was.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "dora" and self.base == "nf4":
            raise ValueError(
                "dora trains the lengths of rows, and base nf4 rounds the rows: set kind to lora, or base to full"
            )
        return self

    def check_targets(self, config: ModelConfig) -> None:
        """Refuse a model in which there is nothing to put an adapter beside.

        Raises:
            InputError: naming field, value and mend.
        """
        there = matrix_shapes(config)
        if not there.keys() & set(self.targets):
            raise InputError(
                f"finetune.adapter.targets ({', '.join(self.targets)}): the base has none of them; it has {', '.join(there)}"
            )

    def beside(self, config: ModelConfig) -> Beside:
        """What it adds to a model that need not exist."""
        shapes = [shape for name, shape in matrix_shapes(config).items() if name in self.targets]
        lengths = sum(rows for rows, _ in shapes) if self.kind == "dora" else 0
        parameters = self.rank * sum(map(sum, shapes)) + lengths
        # Beside a matrix it keeps what its first half gives; DoRA scales what both give.
        kept = self.rank * len(shapes) + 2 * lengths
        held = NF4_BYTES if self.base == "nf4" else None
        return Beside(config.n_layers * parameters, config.n_layers * kept, held)

    def lora_config(self, **fields: Any) -> Any:
        """The configuration of `peft`."""
        from peft import LoraConfig

        shape: dict[str, Any] = {"r": self.rank, "lora_alpha": self.alpha, "use_dora": self.kind == "dora"}
        return LoraConfig(
            **shape, lora_dropout=0.0, bias="none", **{"target_modules": list(self.targets), **fields}
        )

    def holder(self, dtype: str, device: str) -> "Callable[[nn.Linear], nn.Module] | None":
        """What makes of a linear layer of a block one that holds its frozen matrix as is asked for; None if it is one already.

        Raises:
            InputError: if what that needs is not installed.
        """
        return holder(dtype, device) if self.base == "nf4" else None

    def add_to(self, model: "Transformer", seed: int) -> None:
        """Put adapters beside the matrices of every block, and freeze everything else."""
        import torch
        from peft import inject_adapter_in_model

        # On every rank and in every process the same first weights, whatever was drawn before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with alone():
                inject_adapter_in_model(self.lora_config(), model, adapter_name=_NAME)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def load_into(self, model: "Transformer", weights: "dict[str, Tensor]") -> None:
        """Put adapters with these weights, named as `adapter_weights` names them, beside the matrices of a model.

        Raises:
            ValueError: if a weight is missing, too many, or of another shape.
        """
        import torch

        self.add_to(model, seed=0)
        state = model.state_dict()
        own = dict(zip(adapter_weights(model), (name for name in state if "lora_" in name), strict=True))
        for name in sorted(own.keys() | weights.keys()):
            if name not in own or name not in weights or state[own[name]].shape != weights[name].shape:
                raise ValueError(f"the weight {name} is missing, has no place, or has another shape")
        with torch.no_grad():
            for name, value in weights.items():
                state[own[name]].copy_(value)

    def finish(self, model: "Transformer", out: Path) -> None:
        """Write the trained adapters below `out`, and merge them: what is left is a plain model."""
        from safetensors.torch import save_file

        out.mkdir(parents=True, exist_ok=True)
        save_file(adapter_weights(model), out / ADAPTER_WEIGHTS)
        merge_adapters(model)


def adapter_weights(model: "Transformer") -> "dict[str, Tensor]":
    """The trained weights of the adapters, under the names of `peft`."""
    weights = {}
    for name, value in model.state_dict().items():
        if "lora_" in name:
            # `peft` keeps the name of the adapter out of its files, and the magnitude of DoRA without a last part.
            short = name.replace(f".{_NAME}.", ".").replace(f".{_NAME}", "")
            short = short.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
            weights[short] = value.detach().cpu().contiguous()
    return weights


def merge_adapters(model: "Transformer") -> None:
    """Add the adapters to the weights and take them away: a plain model that computes the same."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
