"""A model as its training begins: with drawn weights or those of a base, with adapters, whole or in shares."""

from collections.abc import Iterator

import torch
from torch import Tensor

from model.deepspeed_engine import built_in_shares
from model.masters import Masters
from model.train_spec import TrainSpec
from model.transformer import Transformer, draw_weights
from model.weights import build_model, parameter_shapes, read_weights


def whole_model(spec: TrainSpec, *, is_trained: bool = False) -> Transformer:
    """The model as it begins, adapters and all, on the CPU; float32 but for what is frozen.

    Args:
        is_trained: whether it is to be trained: what is frozen is then held as the adapter and the dtype say.
    """
    hold = spec.adapter.holder(spec.train.dtype, spec.machine.device) if spec.adapter and is_trained else None
    if spec.start:
        weights = read_weights(spec.start)
    else:
        shapes = parameter_shapes(spec.model, spec.vocabulary_size)
        weights = draw_weights(spec.model, shapes, spec.train.seed)
    model = build_model(spec.model, spec.vocabulary_size, weights, hold)
    if spec.adapter:
        spec.adapter.add_to(model, spec.train.seed)
    if spec.adapter and is_trained and spec.train.dtype == "bfloat16":
        # The engine would round them too, but only where they are trained, which has no room for them as they were.
        for weight in model.parameters():
            if not weight.requires_grad and weight.is_floating_point():
                weight.data = weight.data.bfloat16()
    return model


class FirstModel:
    """The model that the engine is given, and the first weights, which it may lose.

    At ZeRO stage 3 no rank builds all of them, but for adapters, whose base is built whole.
    """

    def __init__(self, spec: TrainSpec) -> None:
        self.spec, self.in_shares = spec, spec.zero_stage == 3 and not spec.adapter
        self.model = self._built_in_shares() if self.in_shares else whole_model(spec, is_trained=True)
        # The values as they are: in bfloat16 the engine gives the model others, rounded ones, in their place.
        named = self.model.named_parameters()
        self.trained = {name: weight.detach() for name, weight in named if weight.requires_grad}

    def _built_in_shares(self) -> Transformer:
        with built_in_shares(self.spec):
            return Transformer(self.spec.model, self.spec.vocabulary_size)

    def put_into(self, masters: Masters) -> None:
        """Give the weights that the optimizer moves their first values, where the engine did not; then they are forgotten here."""
        if self.in_shares:
            masters.fill_one_by_one(self._values())
            masters.refresh()
        elif self.spec.train.dtype == "bfloat16":
            masters.fill_one_by_one(self.trained.items())
            masters.refresh()
        self.trained.clear()

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        """The first weights, one after another, the same on any number of ranks."""
        spec = self.spec
        if spec.start:
            return read_weights(spec.start)
        named = self.model.named_parameters()
        shapes: dict[str, torch.Size] = {name: weight.ds_shape for name, weight in named}  # type: ignore[attr-defined]
        return draw_weights(spec.model, shapes, spec.train.seed)
