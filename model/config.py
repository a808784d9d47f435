"""Configuration of the language model and of its training: all that decides what the model becomes."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from model.base_config import Config
from model.sizes import DEPTHS, shape_of


class RopeScaling(Config):
    """Rotary frequencies of a model whose context was lengthened after it was trained."""

    kind: Literal["linear", "llama3"] = Field(
        description="linear: all frequencies divided by factor (Chen et al. 2023, arXiv 2306.15595); llama3: only those whose "
        "waves are long beside the former context, as Llama 3.1 and later have them."
    )
    factor: float = Field(ge=1, description="How much longer the context became.")
    low_frequency_factor: float = Field(
        1.0,
        gt=0,
        description="Waves longer than the former context over this are stretched by factor; llama3 only.",
    )
    high_frequency_factor: float = Field(
        4.0,
        gt=0,
        description="Waves shorter than the former context over this stay as they are; llama3 only.",
    )
    former_context_length: int = Field(
        8192, ge=1, description="Context that the model was first trained with, in tokens; llama3 only."
    )

    @model_validator(mode="after")
    def _factors_fit(self) -> Self:
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ValueError(
                f"low_frequency_factor ({self.low_frequency_factor:g}) must be below high_frequency_factor "
                f"({self.high_frequency_factor:g})"
            )
        return self


class ModelConfig(Config):
    """Shape of the decoder-only Transformer.

    Each combination that is accepted here exports to a class of stock `transformers`
    (see `model.hugging_face`); the others are refused, so that no model is trained that
    cannot leave the house.
    """

    size: str | None = Field(
        None,
        exclude=True,
        description=f"Shape by name: {', '.join(DEPTHS)}. It sets n_layers, d_model, n_heads and context_length, each of which "
        "may be given beside it.",
    )
    n_layers: int = Field(4, ge=1, description="Number of Transformer blocks.")
    d_model: int = Field(256, ge=8, description="Width of the residual stream, in features.")
    n_heads: int = Field(
        4, ge=1, description="Number of query heads; divides d_model unless d_head is given."
    )
    n_kv_heads: int | None = Field(
        None, ge=1, description="Number of key and value heads (grouped-query attention); n_heads if empty."
    )
    d_head: int | None = Field(
        None, ge=2, description="Features of one head; d_model / n_heads if empty. rmsnorm only."
    )
    d_feedforward: int | None = Field(
        None,
        ge=8,
        description="Width of the feed-forward layer, in features; if empty, 8/3 of d_model (rounded up to a "
        "multiple of 64) for swiglu, 4 times d_model for gelu: the same number of parameters.",
    )
    context_length: int = Field(256, ge=8, description="Length of a training window, in tokens.")
    norm: Literal["rmsnorm", "layernorm"] = Field(
        "rmsnorm", description="Normalisation before each sub-layer."
    )
    norm_epsilon: float = Field(1e-6, gt=0, description="Added to the variance in each norm.")
    feed_forward: Literal["swiglu", "gelu"] = Field("swiglu", description="Feed-forward sub-layer.")
    qk_norm: bool = Field(
        False, description="Normalise queries and keys per head before RoPE (rmsnorm and swiglu only)."
    )
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary position frequencies.")
    rope_scaling: RopeScaling | None = Field(
        None, description="How the frequencies were changed for a longer context; not at all if empty."
    )
    tie_embeddings: bool = Field(False, description="Use the token embedding as the language-model head too.")

    @model_validator(mode="before")
    @classmethod
    def _size_is_a_shape(cls, values: Any) -> Any:
        """What a size stands for is what is kept: a name and its values are the same model, with the same key."""
        if isinstance(values, dict) and values.get("size") is not None:
            values = {**shape_of(str(values["size"])), **values}
            del values["size"]
        return values

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.d_head and self.norm != "rmsnorm":
            raise ValueError(
                "d_head with norm layernorm exports to no stock transformers class: leave it out, or set norm to rmsnorm"
            )
        if not self.d_head and self.d_model % self.n_heads:
            raise ValueError(
                f"d_model ({self.d_model}) must be divisible by n_heads ({self.n_heads}): "
                f"take d_model {self.d_model // self.n_heads * self.n_heads or self.n_heads} or another n_heads"
            )
        if self.head_dim % 2:
            what = "d_head" if self.d_head else "d_model / n_heads"
            raise ValueError(f"{what} ({self.head_dim}) must be even for RoPE: change it")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be divisible by n_kv_heads ({self.kv_heads})")
        if self.qk_norm and (self.norm, self.feed_forward) != ("rmsnorm", "swiglu"):
            raise ValueError(
                f"qk_norm with norm {self.norm} and feed_forward {self.feed_forward} exports to no stock transformers "
                "class: set qk_norm to false, or norm to rmsnorm and feed_forward to swiglu"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, resolved."""
        return self.n_kv_heads or self.n_heads

    @property
    def feedforward_dim(self) -> int:
        """Width of the feed-forward layer, resolved."""
        if self.d_feedforward:
            return self.d_feedforward
        return -(-self.d_model * 8 // 3 // 64) * 64 if self.feed_forward == "swiglu" else 4 * self.d_model


def flops_per_token(config: ModelConfig, vocabulary_size: int) -> int:
    """Matrix FLOPs that training spends on one token, forward and backward, without recomputation.

    6 for each matrix weight that multiplies (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)
    plus the causal half of the attention products: 6 x n_layers x n_heads x d_head x context_length.
    """
    matrices = 3 if config.feed_forward == "swiglu" else 2
    attention = config.d_model * config.head_dim * (2 * config.n_heads + 2 * config.kv_heads)
    block = attention + matrices * config.d_model * config.feedforward_dim
    weights = config.n_layers * block + vocabulary_size * config.d_model
    return 6 * weights + 6 * config.n_layers * config.n_heads * config.head_dim * config.context_length


# The kinds of the fields that every training has. Their defaults differ: a base is trained further at other rates.
OptimizerName = Annotated[
    Literal["muon", "adamw"],
    Field(description="muon: Muon for the matrices of the blocks, AdamW for the rest; adamw: AdamW for all."),
]
LearningRate = Annotated[float, Field(gt=0, description="Peak AdamW learning rate.")]
MuonLearningRate = Annotated[float, Field(gt=0, description="Peak Muon learning rate; used by muon only.")]
GradientClipping = Annotated[
    float | None,
    Field(
        ge=0,
        description="Largest global gradient norm; 0 clips nothing. If empty, 1 with adamw (Brown et al. 2020, arXiv 2005.14165, "
        "appendix B), and 0 with muon, whose updates do not depend on the norm.",
    ),
]
WarmupFraction = Annotated[
    float, Field(ge=0, le=1, description="Share of the steps in which the rate rises linearly.")
]
Evaluations = Annotated[
    int, Field(ge=0, description="Times that the held-out loss is measured while it trains.")
]


class OptimizationConfig(Config):
    """How weights are moved: what training from scratch and fine-tuning have in common."""

    optimizer: OptimizerName = "muon"
    learning_rate: LearningRate = 3e-3
    muon_learning_rate: MuonLearningRate = 0.01
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of matrices.")
    gradient_clipping: GradientClipping = None
    warmup_fraction: WarmupFraction = 0.02
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Compute type. bfloat16: weights are computed with in bfloat16, and moved in float32. auto: bfloat16 on CUDA, and on "
        "CPUs with instructions for it (avx512_bf16 or amx_bf16), else float32; a run says which, and keeps it.",
    )
    not_finite: Literal["stop", "skip"] = Field(
        "stop",
        description="What becomes of a step whose loss or gradient is not finite. stop: the training; skip: it moves no weight, and is "
        "counted; after ten in a row the training stops.",
    )
    spikes: Literal["keep", "skip"] = Field(
        "keep",
        description="What becomes of a step whose loss or gradient norm is more than six standard deviations above those of the last 128, of which there must be 64. "
        "keep: it is counted, and its documents are named; skip: it moves no weight, too.",
    )
    isolate_documents: bool = Field(
        False,
        description="Whether a token of text attends to its own document only, and not to those before it in the window. Conversations never "
        "see each other.",
    )
    evaluations: Evaluations = 10
    evaluation_tokens: int = Field(
        32_768, ge=1, description="Held-out tokens that each of these measurements reads, in tokens."
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Which weights are kept: best, those with the lowest held-out loss of the measurements on the way, so "
        "that a model that has begun to learn its text by heart is not the one you get; last, those after the last step.",
    )
    averaging: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the steps over which the weights are averaged, with falling importance; what is measured and "
        "kept is the average. Helps where text is read several times; 0 averages nothing.",
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of what is drawn: first weights, and the order of the windows."
    )

    @property
    def largest_gradient_norm(self) -> float:
        """gradient_clipping, resolved."""
        if self.gradient_clipping is None:
            return 1.0 if self.optimizer == "adamw" else 0.0
        return self.gradient_clipping


class TrainConfig(OptimizationConfig):
    """How the model is trained: everything that changes the weights it ends with."""

    tokens: int = Field(
        2_000_000, ge=1, description="Tokens to train on, in tokens; rounded down to whole steps."
    )
    tokens_per_batch: int = Field(
        4096,
        ge=8,
        description="Tokens in one optimizer step, in tokens; a multiple of the context length.",
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW: decay of the second moment.")
    adam_epsilon: float = Field(1e-10, gt=0, description="AdamW: added to the denominator.")
    decay_fraction: float = Field(
        0.98, ge=0, le=1, description="Share of the steps, at the end, in which it falls."
    )
    decay: Literal["linear", "cosine"] = Field("linear", description="Shape of the fall.")
    final_rate: float = Field(
        0.0, ge=0, le=1, description="Rate after the last step, as a share of the peak."
    )

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.warmup_fraction + self.decay_fraction > 1 + 1e-9:
            raise ValueError(
                f"warmup_fraction ({self.warmup_fraction}) and decay_fraction ({self.decay_fraction}) "
                "exceed 1 together: lower one of them"
            )
        if self.tokens < self.tokens_per_batch:
            raise ValueError(
                f"tokens ({self.tokens}) is less than one step of tokens_per_batch ({self.tokens_per_batch}): "
                "raise tokens or lower tokens_per_batch"
            )
        return self

    @property
    def n_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.tokens // self.tokens_per_batch
