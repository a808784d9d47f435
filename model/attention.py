"""Attention of training and of generation: one function, and below it what fits the device.

Names of shapes: B windows, H heads, K key/value heads, T tokens, S keys, d features of a head, M documents.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.packing import are_packed


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, ends: Tensor | None = None) -> Tensor:
    """Causal attention: q (B, H, T, d), k and v (B, K, S, d) -> (B, H, T, d).

    Args:
        mask: which keys each token attends to, bool, broadcast to (B, H, T, S).
        ends: where documents end in each window, int64 (B, M), rising to T and then staying there; a token attends to its own
            document only. No mask of T x T is made.
    """
    if ends is not None:
        return _attend_within_documents(q, k, v, ends)
    is_causal = mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def _attend_within_documents(q: Tensor, k: Tensor, v: Tensor, ends: Tensor) -> Tensor:
    batch, _, length, features = q.shape
    if are_packed(is_cuda=q.is_cuda, is_float32=q.dtype == torch.float32, head_dim=features):
        # All windows as one row of documents; those of no length, with which rows are filled up, cost nothing.
        from torch.nn.attention.varlen import varlen_attn

        firsts = torch.arange(batch, device=q.device).unsqueeze(1) * length
        bounds = F.pad((ends + firsts).flatten(), (1, 0)).int()
        packed_q, packed_k, packed_v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        y = varlen_attn(
            packed_q,
            packed_k,
            packed_v,
            bounds,
            bounds,
            length,
            length,
            window_size=(-1, 0),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        assert isinstance(y, Tensor)
        return y.view(batch, length, *y.shape[1:]).transpose(1, 2)
    # One document after another: less work than a mask, which hides most of what it computes.
    windows = []
    for row, bounds_of_row in enumerate(ends.cpu().numpy().tolist()):
        parts, start = [], 0
        for end in bounds_of_row:
            if end > start:
                own = slice(row, row + 1), slice(None), slice(start, end)
                parts.append(attend(q[own], k[own], v[own]))
                start = end
        windows.append(torch.cat(parts, dim=2))
    return torch.cat(windows)
