"""The decoder-only Transformer: embedding, blocks of attention and feed-forward, head.

Vaswani et al. 2017 (arXiv 1706.03762) in the pre-norm form of Llama (arXiv 2302.13971).
Names of shapes: B windows, T tokens, D model features, H heads, K key/value heads,
d features of a head, V vocabulary entries.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig

IGNORED = -100
"""A target of which no loss is taken."""


class LayerNorm(nn.LayerNorm):
    """LayerNorm with a weight and no bias."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps=eps, bias=False)


def build_norm(config: ModelConfig, dim: int) -> nn.Module:
    """The normalisation that `config` names, over the last dimension of size `dim`."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(dim, eps=config.norm_epsilon)
    return LayerNorm(dim, eps=config.norm_epsilon)


def rope_tables(n_positions: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding (Su et al. 2021, arXiv 2104.09864, equation 15).

    Returns two float32 tensors of shape (n_positions, head_dim), in the half-split layout
    of Llama: feature i is rotated together with feature i + head_dim / 2.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
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
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D).

        Args:
            cos, sin: see `apply_rope`.
            mask: which of S keys each token attends to, bool, broadcast to (B, H, T, S); causal if None.
            cache: keys and values of the S - T tokens before these; these are added to it.
        """
        batch, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(batch, length, self.n_heads, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if cache is not None:
            k, v = cache.append(k, v)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and length > 1, enable_gqa=self.kv_heads != self.n_heads
        )
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
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D); the rest as in `Attention`."""
        x = x + self.attention(self.attention_norm(x), cos, sin, mask, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of a linear head, `rows` positions at a time.

    The logits (N, V) never exist as a whole: each chunk is turned into its loss and its
    gradient at once, as in Cut Your Losses (arXiv 2411.09009) without the kernel.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        # Summed over chunks in float32: in bfloat16 the error would grow with the batch.
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        for start in range(0, x.shape[0], rows):
            chunk, target = x[start : start + rows], targets[start : start + rows, None]
            log_probabilities = (chunk @ weight.T).log_softmax(dim=-1, dtype=torch.float32)
            loss -= log_probabilities.gather(1, target).sum()
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
    def backward(ctx, *grad_outputs: Tensor):
        grad_x, grad_weight = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_outputs[0]).to(grad_x.dtype)
        return grad_x * grad_outputs[0], grad_weight, None, None


class Transformer(nn.Module):
    """The language model: token ids in, logits (or the loss) out."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.activation_checkpointing = False
        self.autocast_dtype: torch.dtype | None = None
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
        cos, sin = rope_tables(self.config.context_length, self.config.head_dim, self.config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw the initial weights from `seed`, the same on every machine.

        Matrices N(0, 1/fan_in); the projections that write to the residual stream and the
        head start at zero, so that the model begins as the identity and with uniform
        logits (muP's zero-init, arXiv 2203.03466, appendix D.2). A tied head cannot be zero.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                parameter.zero_()
            elif name == "embedding.weight":
                parameter.normal_(0.0, 0.02 if self.config.tie_embeddings else 0.1, generator=generator)
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)

    def hidden_states(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """Token ids (B, T) -> normed states (B, T, D).

        Args:
            positions: position of each token, int64 (B, T), below the context length; 0 to T - 1 if None.
            mask: see `Attention`.
            caches: one for each block; only with `positions`, and with a mask unless T is 1 or they are empty.
        """
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise ValueError(f"{length} tokens do not fit into the context length {self.config.context_length}")
        if positions is None:
            cos, sin = self.cos[:length], self.sin[:length]
        else:
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = self.embedding(tokens)
        for i, block in enumerate(self.blocks):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, mask, use_reentrant=False)
            else:
                x = block(x, cos, sin, mask, caches[i] if caches else None)
        return self.norm(x)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        reference: Tensor | None = None,
        *,
        denominator: float | None = None,
        beta: float = 0.0,
    ) -> Tensor:
        """Logits (B, T, V), or with `targets` the loss (a scalar).

        Args:
            tokens: ids (B, T), or (B, 2, T) for preference pairs, chosen before rejected.
            targets: of the shape of `tokens`; `IGNORED` where there is no loss. The loss is the
                summed cross entropy in nats, divided by `denominator`, or by the number of targets.
            segments: (B, T); a token attends to its own segment only. All attend if None.
            positions: (B, T); see `hidden_states`.
            reference: log-probabilities (B, 2) of the pairs under the reference model, in nats;
                then the loss is that of DPO with `beta`, summed and divided by `denominator`.
        """
        if targets is not None and reference is not None:
            return self._preference_loss(tokens, targets, reference, beta) / (denominator or len(tokens))
        # Here and not around the call: DeepSpeed's engine switches off the autocast of its caller.
        with torch.autocast(tokens.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            mask = None
            if segments is not None:
                length = tokens.shape[1]
                causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
                mask = ((segments[:, :, None] == segments[:, None]) & causal)[:, None]
            states = self.hidden_states(tokens, positions, mask)
            if targets is None:
                return self.lm_head(states)
            flat, wanted, weight = states.flatten(0, 1), targets.flatten(), self.lm_head.weight
            if segments is not None:
                flat, wanted = flat[wanted != IGNORED], wanted[wanted != IGNORED]
            if self.autocast_dtype is not None:
                flat, weight = flat.to(self.autocast_dtype), weight.to(self.autocast_dtype)
            total = _LinearCrossEntropy.apply(flat, weight, wanted, 512)
            return total / (denominator or targets.numel())

    def log_probabilities(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Summed log-probability of the targets of each row that are not `IGNORED`: (B, T), (B, T) -> (B,), float32, in nats."""
        with torch.autocast(tokens.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            states, wanted = self.hidden_states(tokens), targets != IGNORED
            logits = self.lm_head(states[wanted])
        nats = F.cross_entropy(logits.float(), targets[wanted], reduction="none")
        rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(targets)[wanted]
        return -torch.zeros(len(tokens), dtype=nats.dtype, device=nats.device).index_add(0, rows, nats)

    def _preference_loss(self, tokens: Tensor, targets: Tensor, reference: Tensor, beta: float) -> Tensor:
        """Summed loss of direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7)."""
        found = self.log_probabilities(tokens.flatten(0, 1), targets.flatten(0, 1)).view(-1, 2)
        chosen, rejected = (found - reference).unbind(1)
        return -F.logsigmoid(beta * (chosen - rejected)).sum()


def count_parameters(model: nn.Module) -> int:
    """Number of trainable numbers; a tied head counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
