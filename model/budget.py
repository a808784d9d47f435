"""What a training needs, before it starts: parameters, FLOPs, and bytes of memory on each rank.

Names: s is bytes of a number that is computed with (4, or 2 in bfloat16); the rest as in `model.transformer`. What a block keeps
for the backward pass is counted tensor by tensor, as torch 2.13 saves them on a CPU; `benchmarks/estimate.py` compares the sum with
what a process held at its peak. Published estimates of the kind: Korthikanti et al. 2022 (arXiv 2205.05198, section 4) for
activations, Rajbhandari et al. 2019 (arXiv 1910.02054, figure 1) for the stages of ZeRO.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from model.chunks import head_rows
from model.config import ModelConfig, flops_per_token
from model.packing import are_packed

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Parameters:
    """Numbers that are trained, by kind; a tied head counts with the embedding."""

    embedding: int
    matrices: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.matrices + self.norms + self.head


def count(config: ModelConfig, vocabulary_size: int) -> Parameters:
    """The parameters of a model that need not exist."""
    width, heads, kv_heads, head = config.d_model, config.n_heads, config.kv_heads, config.head_dim
    attention = width * head * (2 * heads + 2 * kv_heads)
    feed_forward = (3 if config.feed_forward == "swiglu" else 2) * width * config.feedforward_dim
    norms = 2 * width + (2 * head if config.qk_norm else 0)
    return Parameters(
        embedding=vocabulary_size * width,
        matrices=config.n_layers * (attention + feed_forward),
        norms=config.n_layers * norms + width,
        head=0 if config.tie_embeddings else vocabulary_size * width,
    )


_LARGEST_BUCKET, _FLAT_ELEMENTS = 100_000_000, 500_000_000


def bucket_elements(n_trained: int) -> int:
    """Gradients that ranks exchange together, at ZeRO stage 1 and above, and for which there is a buffer of that size."""
    return min(n_trained, _LARGEST_BUCKET)


def live_elements(config: ModelConfig, vocabulary_size: int) -> int:
    """Weights that a rank has whole at once, at ZeRO stage 3: those of two blocks, and of the embedding or the head."""
    parameters = count(config, vocabulary_size)
    return parameters.embedding + 2 * parameters.matrices // config.n_layers


def _norm_bytes(config: ModelConfig, width: int, heads: int, s: int) -> int:
    """What a norm over `heads` times `width` features of a token keeps, but for what it gives."""
    if config.norm == "layernorm":
        return s * heads * width + 8 * heads
    # rms_norm is composed of others on a CPU: its input and the normed input in float32, and the scale.
    return 8 * heads * width + 4 * heads


def block_bytes_per_token(
    config: ModelConfig, s: int, recompute: Recompute = "none", *, is_one_by_one: bool = False
) -> int:
    """What a block keeps of a token between forward and backward pass.

    Args:
        is_one_by_one: whether documents go through attention one after another, so that what it gives them is joined to a copy.
    """
    width, hidden = config.d_model, config.feedforward_dim
    q, kv = config.n_heads * config.head_dim, config.kv_heads * config.head_dim
    gates = 2 if config.feed_forward == "swiglu" else 1
    if recompute == "full":
        return s * width
    if recompute == "selective":
        # Its input, and what matrix products and attention give.
        products = q + 2 * kv + width + gates * hidden + width
        return s * (width + products + q) + 4 * config.n_heads
    norms = 2 * _norm_bytes(config, width, 1, s)
    if config.qk_norm:
        norms += _norm_bytes(config, config.head_dim, config.n_heads, s)
        norms += _norm_bytes(config, config.head_dim, config.kv_heads, s)
    attention = s * (width + q + 2 * kv + (2 if is_one_by_one else 1) * q) + 4 * config.n_heads
    return norms + attention + s * (width + 2 * gates * hidden)


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at its peak.

    Attributes:
        weights: that are computed with.
        gradients: of all of them, and the float32 buffer that bfloat16 ones add up in.
        optimizer: float32 masters, where they are not the weights themselves, and moments.
        activations: kept for the backward pass, and what one block needs while it computes.
        head: logits of a chunk, their gradient, and the gradient of the head.
        step: what the optimizer needs while it moves the weights.
        copy: of weights and moments, while a checkpoint is written; on a CPU, where it lies beside everything else.
        on_cpu: whether half of the last two finds its room where activations and head were: what an allocator was given for these is
            often in pieces that are too small. Measured on CPUs; elsewhere all is added.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    step: int
    copy: int
    on_cpu: bool

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by kind, of which `shared` are counted twice among the others, and so are negative."""
        kinds = {name: value for name, value in vars(self).items() if name != "on_cpu"}
        least = min(self.activations + self.head, self.step + self.copy)
        return {**kinds, "shared": -(least // 2) if self.on_cpu else 0}

    @property
    def total(self) -> int:
        """What all of it takes together."""
        return sum(self.parts.values())


def _work_bytes_per_token(config: ModelConfig, s: int) -> int:
    """What the backward pass of a block needs for itself: gradients of its widest layers, and of norms that are composed of others."""
    gates = 2 if config.feed_forward == "swiglu" else 1
    norms = (32 if config.norm == "rmsnorm" else 0) * config.d_model * (2 if config.qk_norm else 1)
    return s * (2 * gates * config.feedforward_dim + 4 * config.d_model) + norms


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of the matrices of a block, by name."""
    width, hidden = config.d_model, config.feedforward_dim
    q, kv = config.n_heads * config.head_dim, config.kv_heads * config.head_dim
    gate = {"gate_proj": (hidden, width)} if config.feed_forward == "swiglu" else {}
    attention = {"q_proj": (q, width), "k_proj": (kv, width), "v_proj": (kv, width), "o_proj": (width, q)}
    return {**attention, **gate, "up_proj": (hidden, width), "down_proj": (width, hidden)}


def _largest_stack(config: ModelConfig) -> int:
    """Elements of the matrices of one shape that Muon works on together."""
    by_shape: dict[tuple[int, int], int] = {}
    for shape in matrix_shapes(config).values():
        by_shape[shape] = by_shape.get(shape, 0) + config.n_layers * shape[0] * shape[1]
    return max(by_shape.values())


@dataclass(frozen=True)
class Beside:
    """What is trained beside weights that are frozen.

    Attributes:
        parameters: numbers that are trained.
        kept_per_token: numbers that it keeps of a token, in all blocks, for the backward pass.
        matrix_bytes: of a number of the frozen matrices; None for as many as are computed with.
    """

    parameters: int
    kept_per_token: int
    matrix_bytes: float | None = None


def memory(
    config: ModelConfig,
    vocabulary_size: int,
    *,
    micro_batch: int,
    window_length: int,
    dtype: str,
    optimizer: str,
    zero_stage: int,
    ranks: int,
    recompute: Recompute = "none",
    averaging: bool = False,
    on_cpu: bool = True,
    isolate_documents: bool = False,
    beside: Beside | None = None,
) -> Memory:
    """What one rank needs.

    Args:
        micro_batch: windows of a forward pass.
        dtype: float32 or bfloat16.
        optimizer: muon or adamw.
        averaging: whether an average of the weights is kept.
        on_cpu: whether it is a CPU, where copies for checkpoints lie in the same memory.
        isolate_documents: whether a token attends to its own document only.
        beside: what is trained, if that is not the weights themselves.
    """
    s = 2 if dtype == "bfloat16" else 4
    parameters = count(config, vocabulary_size)
    n = beside.parameters if beside else parameters.total
    share = ranks if zero_stage else 1
    held = s * (parameters.total + (beside.parameters if beside else 0))
    if beside and beside.matrix_bytes:
        largest = max(rows * columns for rows, columns in matrix_shapes(config).values())
        held += s * largest - int((s - beside.matrix_bytes) * parameters.matrices)
    weights = held if zero_stage < 3 else held // ranks
    if zero_stage == 3 and ranks > 1:
        weights += s * live_elements(config, vocabulary_size)
    gradients = s * n if zero_stage < 2 else s * n // ranks
    if zero_stage == 1 and dtype == "bfloat16" and not on_cpu:
        # What DeepSpeed makes flat of the sums, so many at a time whatever the ranks.
        gradients += 4 * min(n, _FLAT_ELEMENTS)
    elif zero_stage and ranks > 1 and not on_cpu:
        # The buffer and what is sent of it; of one that is not touched a CPU holds nothing.
        gradients += 2 * s * bucket_elements(n)
    if dtype == "bfloat16":
        gradients += 4 * n if zero_stage == 1 else 4 * n // share
    with_muon = parameters.matrices if optimizer == "muon" else 0
    moments = 4 * with_muon + 8 * (n - with_muon)
    # At stage 3 in float32 the masters are the weights; at stages 1 and 2 they are a copy.
    has_masters = dtype == "bfloat16" or zero_stage in (1, 2)
    masters = 4 * n if has_masters else 0
    kept = moments + masters + (4 * n if averaging else 0)

    tokens = micro_batch * window_length
    packed = are_packed(is_cuda=not on_cpu, is_float32=dtype != "bfloat16", head_dim=config.head_dim)
    is_one_by_one = isolate_documents and not packed
    own = block_bytes_per_token(config, s, is_one_by_one=is_one_by_one)
    layers = config.n_layers * block_bytes_per_token(config, s, recompute, is_one_by_one=is_one_by_one)
    if beside and recompute != "full":
        layers += s * beside.kept_per_token
    again = own if recompute != "none" else 0
    if recompute == "full" and on_cpu:
        again += own  # of the block before, in pieces that fit nothing of this one
    ends = s * config.d_model + _norm_bytes(config, config.d_model, 1, s) + s * config.d_model
    activations = tokens * (layers + again + _work_bytes_per_token(config, s) + ends)
    rows = min(tokens, head_rows(vocabulary_size, "cpu" if on_cpu else "cuda"))
    head = rows * vocabulary_size * (4 + 2 * s) + tokens * s * config.d_model
    if not beside:
        head += 4 * vocabulary_size * config.d_model
    stack = _largest_stack(config) // share if with_muon else 0
    # Without ZeRO gradients are flattened into one buffer; Newton-Schulz holds five times what it works on.
    step = 5 * (4 if on_cpu else 2) * stack + (4 * n if zero_stage == 0 else 0)
    copy = (moments + 4 * n + (4 * n if averaging else 0)) // share if on_cpu else 0
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=kept // share,
        activations=activations,
        head=head,
        step=step,
        copy=copy,
        on_cpu=on_cpu,
    )


def recomputed_flops_per_token(config: ModelConfig, recompute: Recompute) -> int:
    """FLOPs that are spent a second time on a token, in the backward pass: those of the forward pass of all blocks, if full."""
    return flops_per_token(config, 0) // 3 if recompute == "full" else 0


@dataclass(frozen=True)
class Accelerator:
    """A kind of device.

    Attributes:
        peak: bfloat16 FLOP/s of dense matrix products, by the maker's data sheet.
        bytes: of its memory.
    """

    name: str
    peak: float
    bytes: float


ACCELERATORS = (
    Accelerator("b200", 2250e12, 192e9),
    Accelerator("gb200", 2500e12, 186e9),
    Accelerator("gh200", 989e12, 96e9),
    Accelerator("h200", 989e12, 141e9),
    Accelerator("h100 pcie", 756e12, 80e9),
    Accelerator("h100", 989e12, 80e9),
    Accelerator("a100", 312e12, 80e9),
    Accelerator("l40s", 362e12, 48e9),
    Accelerator("l40", 181e12, 48e9),
    Accelerator("l4", 121e12, 24e9),
    Accelerator("rtx 5090", 210e12, 32e9),
    Accelerator("rtx 4090", 165e12, 24e9),
    Accelerator("rtx 3090", 71e12, 24e9),
)


def accelerator_named(name: str) -> Accelerator | None:
    """The kind of device that a name such as "NVIDIA H100 80GB HBM3" means, if it is known."""
    words = name.lower().replace("-", " ").replace("_", " ")
    return next((kind for kind in ACCELERATORS if re.search(rf"\b{kind.name}(sxm\d*)?\b", words)), None)


@dataclass(frozen=True)
class Plan:
    """How a training is laid out on its ranks, and what one of them then needs.

    Attributes:
        micro_batch: windows of a forward pass.
        fits: whether it does; if not, it is the layout that needs least.
    """

    micro_batch: int
    zero_stage: int
    recompute: Recompute
    memory: Memory
    fits: bool


_GOOD_TOKENS, _MOST_TOKENS = 4_096, 16_384
"""Of a forward pass: enough to keep a device busy, and as many as are of use."""
_SHARE_OF_MEMORY = 0.85
"""Of what a device has: the rest is for libraries, communication and fragments."""


def lay_out(
    config: ModelConfig,
    vocabulary_size: int,
    *,
    windows: int,
    window_length: int,
    dtype: str,
    optimizer: str,
    ranks: int,
    memory_bytes: float | None,
    windows_per_row: int = 1,
    averaging: bool = False,
    on_cpu: bool = True,
    micro_batch: int = 0,
    zero_stage: int | None = None,
    highest_stage: int = 3,
    lowest_stage: int = 0,
    recompute: Recompute | None = None,
    recomputed_block: int = 0,
    isolate_documents: bool = False,
    beside: Beside | None = None,
) -> Plan:
    """The first layout that fits, of those that cost least: longer passes before shorter ones, and then first a higher ZeRO stage,
    then recomputation.

    Args:
        windows: of a step, on one rank: a multiple of windows_per_row.
        windows_per_row: that stay together in a pass.
        memory_bytes: of one rank; None if nobody knows, and then it fits.
        highest_stage, lowest_stage: that may be chosen.
        recomputed_block: with `recompute` none, of every so many blocks one keeps its input alone; 0 for no such block.
        micro_batch, zero_stage, recompute: given, and not chosen; 0 or None leaves them open.
        isolate_documents: whether a token attends to its own document only.
        beside: what is trained, if that is not the weights themselves.
    """
    first = 1 if ranks > 1 or dtype == "bfloat16" else 0
    stages = [stage for stage in (first, 2, 3) if stage <= highest_stage] if ranks > 1 else [first]
    # Keys that need a stage are told of, and not overruled, where it cannot be.
    stages = [stage for stage in stages if stage >= lowest_stage] or [min(highest_stage, lowest_stage)]
    stages = stages if zero_stage is None else [zero_stage]
    modes: list[Recompute] = ["none", "selective", "full"] if recompute is None else [recompute]
    divisors = [size for size in range(windows, 0, -windows_per_row) if windows % size == 0]
    most = max(1, _MOST_TOKENS // window_length)
    fitting = [size for size in divisors if size <= most] or divisors[-1:]
    good = [size for size in fitting if size * window_length >= _GOOD_TOKENS] or fitting[:1]
    given = [next(size for size in divisors if size <= micro_batch)] if micro_batch else None
    how = {"dtype": dtype, "optimizer": optimizer, "ranks": ranks, "averaging": averaging}
    how |= {"on_cpu": on_cpu, "isolate_documents": isolate_documents, "beside": beside}

    def needs_of(size: int, stage: int, mode: Recompute) -> Memory:
        return memory(
            config,
            vocabulary_size,
            micro_batch=size,
            window_length=window_length,
            zero_stage=stage,
            recompute=mode,
            **how,  # type: ignore[arg-type]
        )

    def plan(size: int, stage: int, mode: Recompute) -> Plan:
        needs = needs_of(size, stage, mode)
        if recomputed_block:
            saved = needs.activations - needs_of(size, stage, "full").activations
            needs = replace(needs, activations=needs.activations - saved // recomputed_block)
        fits = memory_bytes is None or needs.total <= _SHARE_OF_MEMORY * memory_bytes
        return Plan(size, stage, mode, needs, fits)

    for sizes in [given] if given else [good, fitting]:
        plans = [plan(size, stage, mode) for mode in modes for stage in stages for size in sizes]
        if found := next((each for each in plans if each.fits), None):
            return found
    return min(plans, key=lambda each: each.memory.total)
