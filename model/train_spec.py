"""What a rank needs to know to train, on its way to its process."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from model.config import ModelConfig, TrainConfig, flops_per_token
from model.machine import TrainingMachine
from model.parts import Part

METRICS = "metrics.jsonl"
"""Below the working folder: what each step measured, a line of JSON each."""
SPIKES = "spikes.jsonl"
"""Below the working folder: the steps that are spikes, with the documents of their batches, a line of JSON each."""


_TOKENS_PER_MICRO_BATCH = 16_384
"""What is read in one forward pass unless the machine says otherwise: a whole batch of half a million tokens fits nowhere."""


class TrainSpec(BaseModel):
    """Everything that a rank needs to know.

    Attributes:
        objective: what the model is trained to do; see `model.objectives.objective.Objective`.
        adapter: trained beside the frozen weights of `start`; see `model.adapters.LowRankAdapter`.
        context_length: tokens of a training window, if fewer than the model's context.
        start: folder of a trained model whose weights are the first ones; None starts at random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig
    train: TrainConfig
    machine: TrainingMachine
    objective: Part
    train_shards: list[Path]
    validation_shards: list[Path]
    token_bytes: Path
    tokenizer_sha256: str
    vocabulary_size: int
    work: Path
    out: Path
    adapter: Part = None
    start: Path | None = None
    context_length: int | None = None

    @property
    def zero_stage(self) -> int:
        """machine.zero_stage, resolved. Master weights in float32 beside bfloat16 exist from stage 1 on."""
        if self.machine.zero_stage != "auto":
            return self.machine.zero_stage
        return 1 if self.machine.ranks > 1 or self.train.dtype == "bfloat16" else 0

    @property
    def is_compiled(self) -> bool:
        """machine.compile, resolved; at stage 3 it does not work."""
        wanted = self.machine.device == "cuda" if self.machine.compile == "auto" else self.machine.compile
        return wanted and self.zero_stage < 3

    @property
    def window_length(self) -> int:
        """Tokens of a training window."""
        return self.context_length or self.model.context_length

    @property
    def flops_per_token(self) -> int:
        """Matrix FLOPs that a token costs here: of windows as they are trained on, and without gradients of frozen weights."""
        windows = self.model.model_copy(update={"context_length": self.window_length})
        flops = flops_per_token(windows, self.vocabulary_size)
        if not self.adapter:
            return flops
        shape = self.model
        attention = 6 * shape.n_layers * shape.n_heads * shape.head_dim * self.window_length
        frozen = (flops - attention) // 6
        return attention + 4 * frozen + 6 * int(self.adapter.beside(shape).parameters)

    @property
    def rows_per_batch(self) -> int:
        """Rows of an optimizer step, on all ranks together."""
        return self.train.tokens_per_batch // self.window_length // self.objective.windows_per_row

    @property
    def _rows_that_fit(self) -> int:
        return max(1, _TOKENS_PER_MICRO_BATCH // self.window_length // self.objective.windows_per_row)

    @property
    def micro_batch(self) -> tuple[int, int]:
        """Rows of a forward pass and passes in a step, for one rank."""
        per_rank = self.rows_per_batch // self.machine.ranks
        wanted = self.machine.windows_per_micro_batch or self._rows_that_fit
        rows = next(size for size in range(min(wanted, per_rank), 0, -1) if per_rank % size == 0)
        return rows, per_rank // rows
