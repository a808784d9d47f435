"""The decoder-only Transformer: embedding, blocks of attention and feed-forward, head.

Vaswani et al. 2017 (arXiv 1706.03762) in the pre-norm form of Llama (arXiv 2302.13971).
Names of shapes: B windows, T tokens, D model features, H heads, K key/value heads,
d features of a head, V vocabulary entries.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from model.attention import attend
from model.config import ModelConfig, RopeScaling

_EXPENSIVE = (
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)
"""What selective activation checkpointing keeps: matrix products and attention (torchtitan and arXiv 2205.05198 do so)."""


class LayerNorm(nn.LayerNorm):
    """LayerNorm with a weight and no bias."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps=eps, bias=False)


def build_norm(config: ModelConfig, dim: int) -> nn.Module:
    """The normalisation that `config` names, over the last dimension of size `dim`."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(dim, eps=config.norm_epsilon)
    return LayerNorm(dim, eps=config.norm_epsilon)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians by which each pair of features turns from one position to the next: float32 (head_dim / 2,).

    With `scaling` of kind llama3, waves that are long beside the former context are stretched by its factor, short ones
    stay, and those between are mixed in proportion (Llama 3.1, arXiv 2407.21783, and its published code).
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None:
        return frequencies
    stretched = frequencies / scaling.factor
    if scaling.kind == "linear":
        return stretched
    waves_in_context = scaling.former_context_length * frequencies / (2 * torch.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    share = ((waves_in_context - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - share) * stretched + share * frequencies


def rope_tables(
    n_positions: int, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding (Su et al. 2021, arXiv 2104.09864, equation 15).

    Returns two float32 tensors of shape (n_positions, head_dim), in the half-split layout
    of Llama: feature i is rotated together with feature i + head_dim / 2.
    """
    frequencies = rope_frequencies(head_dim, theta, scaling)
    angles = torch.outer(torch.arange(n_positions, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x` (B, heads, T, d) by its positions; `cos` and `sin` are (T, d), or (B, 1, T, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


class KeyValueCache:
    """Keys and values of the tokens that a layer has seen: two buffers (B, K, capacity, d), filled from the front."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, K, T, d) of T tokens; returns what there is now, (B, K, length, d) each."""
        if self.keys is None or self.values is None:
            batch, heads, _, features = keys.shape
            self.keys, self.values = (keys.new_empty(batch, heads, self.capacity, features) for _ in range(2))
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """Causal multi-head attention, with fewer key/value heads if the config says so (GQA, arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.kv_heads, self.head_dim = config.n_heads, config.kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.d_model, self.n_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.d_model, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.d_model, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.n_heads * self.head_dim, config.d_model, bias=False)
        self.q_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D).

        Args:
            cos, sin: see `apply_rope`.
            mask, ends: see `model.attention.attend`.
            cache: keys and values of the S - T tokens before these; these are added to it.
        """
        batch, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(batch, length, self.n_heads, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if cache is not None:
            k, v = cache.append(k, v)
        y = attend(q, k, v, mask, ends)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class SwiGLU(nn.Module):
    """Gated feed-forward: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.feedforward_dim, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.feedforward_dim, bias=False)
        self.down_proj = nn.Linear(config.feedforward_dim, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GELU(nn.Module):
    """Plain feed-forward: down(gelu(up(x))), with the exact GELU (arXiv 1606.08415)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.feedforward_dim, bias=False)
        self.down_proj = nn.Linear(config.feedforward_dim, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        return self.down_proj(F.gelu(self.up_proj(x)))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config, config.d_model)
        self.attention = Attention(config)
        self.feed_forward_norm = build_norm(config, config.d_model)
        self.feed_forward = SwiGLU(config) if config.feed_forward == "swiglu" else GELU(config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D); the rest as in `Attention`."""
        x = x + self.attention(self.attention_norm(x), cos, sin, mask, cache, ends)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Transformer(nn.Module):
    """The language model: token ids in, logits out."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.activation_checkpointing: str | int = "none"
        self.embedding = nn.Embedding(vocabulary_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = build_norm(config, config.d_model)
        self.lm_head = nn.Linear(config.d_model, vocabulary_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight
        self.cos: Tensor
        self.sin: Tensor
        self.fill_tables()

    def fill_tables(self) -> None:
        """Compute the tables of RoPE, which are not part of the weights."""
        config = self.config
        cos, sin = rope_tables(config.context_length, config.head_dim, config.rope_theta, config.rope_scaling)
        device = self.embedding.weight.device
        self.register_buffer("cos", cos.to(device), persistent=False)
        self.register_buffer("sin", sin.to(device), persistent=False)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw the initial weights from `seed`, the same on every machine."""
        parameters = dict(self.named_parameters())
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        for name, value in draw_weights(self.config, shapes, seed):
            parameters[name].copy_(value)

    def hidden_states(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, T) -> normed states (B, T, D).

        Args:
            positions: position of each token, int64 (B, T), below the context length; 0 to T - 1 if None. Documents that do
                not see each other need none of their own: RoPE makes distances alone count.
            mask, ends: see `model.attention.attend`.
            caches: one for each block; only with `positions`, and with a mask unless T is 1 or they are empty.
        """
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise ValueError(
                f"{length} tokens do not fit into the context length {self.config.context_length}"
            )
        if positions is None:
            cos, sin = self.cos[:length], self.sin[:length]
        else:
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = self.embedding(tokens)
        # Once for all blocks, each of which would keep a copy of its own for the backward pass.
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for i, block in enumerate(self.blocks):
            if torch.is_grad_enabled() and (keep := self._kept_of(i)):
                x = checkpoint(block, x, cos, sin, mask, None, ends, use_reentrant=False, context_fn=keep)
            else:
                x = block(x, cos, sin, mask, caches[i] if caches else None, ends)
        return self.norm(x)

    def _kept_of(self, block: int) -> Callable[[], tuple[Any, Any]] | None:
        """How a block is recomputed in the backward pass; None if all of it is kept."""
        mode = self.activation_checkpointing
        if mode == "selective":
            # It is there once bitsandbytes is imported, as for a base in four bits it is.
            four_bits = getattr(torch.ops.bitsandbytes, "gemm_4bit", None)
            kept = [*_EXPENSIVE, *([four_bits.default] if four_bits else [])]
            return partial(create_selective_checkpoint_contexts, kept)
        is_recomputed = mode == "full" or (isinstance(mode, int) and block % mode == 0)
        return noop_context_fn if is_recomputed else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V) of the token that follows each."""
        return self.lm_head(self.hidden_states(tokens))


def draw_weights(
    config: ModelConfig, shapes: Mapping[str, torch.Size], seed: int
) -> Iterator[tuple[str, Tensor]]:
    """The initial weights, one after another, float32 on the CPU: no more than one of them need exist at a time.

    Matrices N(0, 1/fan_in); the projections that write to the residual stream and the head start at zero, so that the
    model begins as the identity and with uniform logits (muP's zero-init, arXiv 2203.03466, appendix D.2). A tied head
    cannot be zero.

    Args:
        shapes: of the parameters by name, in the order of the model.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        if len(shape) < 2:
            yield name, torch.ones(shape)
        elif name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            yield name, torch.zeros(shape)
        else:
            embedded = 0.02 if config.tie_embeddings else 0.1
            deviation = embedded if name == "embedding.weight" else shape[1] ** -0.5
            yield name, torch.empty(shape).normal_(0.0, deviation, generator=generator)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable numbers; a tied head counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
