"""What training makes small: losses of a Transformer's states. The model itself knows nothing of them.

Names of shapes: B windows, T tokens, D model features, V vocabulary entries, N positions of a batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.batches import IGNORED
from model.budget import head_rows
from model.transformer import Transformer


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of a linear head, `rows` positions at a time.

    The logits (N, V) never exist as a whole: each chunk is turned into its loss and its
    gradient at once, as in Cut Your Losses (arXiv 2411.09009) without the kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        # Summed over chunks in float32: in bfloat16 the error would grow with the batch.
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        for start in range(0, x.shape[0], rows):
            chunk, target = x[start : start + rows], targets[start : start + rows, None]
            log_probabilities = (chunk @ weight.T).log_softmax(dim=-1, dtype=torch.float32)
            loss -= log_probabilities.gather(1, target).sum()
            # The gradient of cross entropy is softmax minus one-hot.
            gradient = log_probabilities.exp_()
            gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
            gradient = gradient.to(x.dtype)
            torch.mm(gradient, weight, out=grad_x[start : start + rows])
            if grad_weight is None:
                continue
            if weight.dtype == torch.float32:
                grad_weight.addmm_(gradient.T, chunk)
            else:
                grad_weight += gradient.T @ chunk
        ctx.save_for_backward(grad_x, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad_outputs[0]).to(grad_x.dtype)
        return grad_x.mul_(grad_outputs[0]), grad_weight, None, None


def summed_cross_entropy(model: Transformer, states: Tensor, targets: Tensor) -> Tensor:
    """Summed cross entropy of the next tokens, in nats: a scalar in float32.

    Args:
        states: normed states (N, D) of the positions, as `Transformer.hidden_states` gives them.
        targets: ids (N,), int64, none of them `IGNORED`.
    """
    rows = head_rows(model.vocabulary_size, states.device.type)
    return _LinearCrossEntropy.apply(states, model.lm_head.weight, targets, rows)  # type: ignore[no-untyped-call]


def segment_mask(segments: Tensor) -> Tensor:
    """Which keys each token attends to, bool (B, 1, T, T): earlier ones of its own segment. `segments` is (B, T)."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return ((segments[:, :, None] == segments[:, None]) & causal)[:, None]


def log_probabilities(model: Transformer, tokens: Tensor, targets: Tensor) -> Tensor:
    """Summed log-probability of the targets of each row that are not `IGNORED`: (B, T), (B, T) -> (B,), in nats."""
    states, wanted = model.hidden_states(tokens), targets != IGNORED
    logits = model.lm_head(states[wanted])
    nats = F.cross_entropy(logits.float(), targets[wanted], reduction="none")
    rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(targets)[wanted]
    return -torch.zeros(len(tokens), dtype=nats.dtype, device=nats.device).index_add(0, rows, nats)
