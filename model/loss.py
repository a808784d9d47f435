"""What training makes small: losses of a Transformer's states. The model itself knows nothing of them.

Names of shapes: B windows, T tokens, D model features, V vocabulary entries, N positions of a batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.batches import IGNORED
from model.chunks import head_rows
from model.transformer import Transformer


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of a linear head, `rows` positions at a time.

    The logits (N, V) never exist as a whole: each chunk is turned into its loss and its
    gradient at once, as in Cut Your Losses (arXiv 2411.09009) without the kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, rows: int, has_ignored: bool) -> Tensor:
        # Summed over chunks in float32: in bfloat16 the error would grow with the batch.
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        for start in range(0, x.shape[0], rows):
            chunk, target = x[start : start + rows], targets[start : start + rows, None]
            log_probabilities = (chunk @ weight.T).log_softmax(dim=-1, dtype=torch.float32)
            if has_ignored:
                # Weighed with nothing, and not taken out: how many there are, only the device knows.
                counts = (target != IGNORED).float()
                target = target.clamp(min=0)
                loss -= (log_probabilities.gather(1, target) * counts).sum()
            else:
                loss -= log_probabilities.gather(1, target).sum()
            # The gradient of cross entropy is softmax minus one-hot.
            gradient = log_probabilities.exp_()
            gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
            if has_ignored:
                gradient.mul_(counts)
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
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad_outputs[0]).to(grad_x.dtype)
        return grad_x.mul_(grad_outputs[0]), grad_weight, None, None, None


def summed_cross_entropy(
    model: Transformer, states: Tensor, targets: Tensor, *, has_ignored: bool = False
) -> Tensor:
    """Summed cross entropy of the next tokens, in nats: a scalar in float32.

    Args:
        states: normed states (N, D) of the positions, as `Transformer.hidden_states` gives them.
        targets: ids (N,), int64.
        has_ignored: whether some of them may be `IGNORED`.
    """
    rows = head_rows(model.vocabulary_size, states.device.type)
    return _LinearCrossEntropy.apply(states, model.lm_head.weight, targets, rows, has_ignored)  # type: ignore[no-untyped-call]


def take_places(states: Tensor, places: Tensor) -> Tensor:
    """The states (B, T, D) at some places (B, N) of each window: (B, N, D)."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))


def target_nats(model: Transformer, states: Tensor, targets: Tensor) -> Tensor:
    """Nats of the targets (N,) that follow the states (N, D): (N,) in float32, zero where they are `IGNORED`.

    The logits of a chunk of positions exist together, and are computed again for the backward pass.
    """
    rows = head_rows(model.vocabulary_size, states.device.type)
    chunks = zip(torch.split(states, rows), torch.split(targets, rows), strict=True)
    nats = [checkpoint(_nats, model.lm_head, some, wanted, use_reentrant=False) for some, wanted in chunks]
    return torch.cat(nats)


def token_nats(model: Transformer, tokens: Tensor, targets: Tensor, ends: Tensor | None = None) -> Tensor:
    """Nats of the targets (B, T) that follow the tokens (B, T): (B, T) in float32, zero where they are `IGNORED`.

    Args:
        ends: where documents end (B, M), int64, if they do not see each other.
    """
    states = model.hidden_states(tokens, ends=ends).flatten(0, 1)
    return target_nats(model, states, targets.flatten()).view(targets.shape)


def log_probabilities(model: Transformer, tokens: Tensor, targets: Tensor) -> Tensor:
    """Summed log-probability of the targets of each row, (B,), in nats.

    Args:
        tokens: ids (B, T).
        targets: the ids (B, T) that follow; `IGNORED` where none is asked for.
    """
    return -token_nats(model, tokens, targets).sum(1)


def _nats(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(states).float(), targets, ignore_index=IGNORED, reduction="none")
