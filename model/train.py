"""The training loop, as one rank runs it: DeepSpeed on torch, from a spec to safetensors.

The loop talks through files: metrics go to a file of JSON lines, checkpoints below the
working folder, the finished model below the output folder.
"""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file

from model.adapters import adapter_weights, add_adapters, merge_adapters
from model.batches import Mixture, Windows
from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import AdapterConfig, ModelConfig, TrainConfig, TrainingMachine, flops_per_token
from model.conversations import PackedConversations, PreferencePairs, documents_of
from model.held_out import PADDING, measure_held_out
from model.optimizer import build_optimizer, set_rates
from model.tokens import Tokens, open_tokens, select_documents
from model.transformer import Transformer, count_parameters
from model.weights import load_model, save_model

METRICS = "metrics.jsonl"
ADAPTER_WEIGHTS = "adapter.safetensors"


class TrainSpec(BaseModel):
    """Everything that a rank needs to know.

    Attributes:
        objective: text: every next token; conversations: those that the mask of the tokens names, packed;
            preferences: DPO on pairs, with `reference`, a file of log-probabilities, and `beta`.
        adapter: train these beside the frozen weights of `start`.
        start: folder of a trained model whose weights are the first ones; None starts at random.
        new_documents: file of JSON with the ids of the documents that are new; then
            `replay_weight` of the windows come from the others.
        replay_shards: other token files, from which `replay_weight` of the windows come.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig
    train: TrainConfig
    machine: TrainingMachine
    train_shards: list[Path]
    validation_shards: list[Path]
    token_bytes: Path
    tokenizer_sha256: str
    vocabulary_size: int
    work: Path
    out: Path
    objective: Literal["text", "conversations", "preferences"] = "text"
    adapter: AdapterConfig | None = None
    reference: Path | None = None
    beta: float = 0.1
    start: Path | None = None
    new_documents: Path | None = None
    replay_shards: list[Path] = []
    replay_weight: float = 0.0


class Stopped(Exception):
    """Training was asked to stop; a checkpoint was written first."""


class Diverged(ValueError):
    """The loss is not finite any more."""


class _Text:
    """Windows of text as rows of a batch: every next token is a target."""

    def __init__(self, windows: Windows | Mixture, context_length: int) -> None:
        self.windows, self.context_length = windows, context_length

    def __len__(self) -> int:
        return len(self.windows)

    def trained_tokens(self, step: int, rows_per_batch: int, seed: int) -> int:
        return rows_per_batch * self.context_length

    def batch(self, step: int, rows_per_batch: int, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
        read = self.windows.batch(step, rows_per_batch, seed, first, count)
        return {"tokens": read[:, :-1], "targets": read[:, 1:]}


def training_rows(spec: TrainSpec) -> _Text | PackedConversations | PreferencePairs:
    """What a batch is made of; new and known documents in proportion if the spec tells them apart."""
    shards = [open_tokens(path, spec.tokenizer_sha256) for path in spec.train_shards]
    length = spec.model.context_length
    if spec.objective == "conversations":
        return PackedConversations(documents_of(shards), length)
    if spec.objective == "preferences":
        assert spec.reference is not None
        return PreferencePairs(documents_of(shards), np.load(spec.reference), length)
    return _Text(_windows(spec, shards), length)


def _windows(spec: TrainSpec, shards: list[Tokens]) -> Windows | Mixture:
    length = spec.model.context_length
    if spec.replay_shards:
        replayed = [open_tokens(path, spec.tokenizer_sha256).ids for path in spec.replay_shards]
        return Mixture(Windows([shard.ids for shard in shards], length), Windows(replayed, length), spec.replay_weight)
    if not spec.new_documents:
        return Windows([shard.ids for shard in shards], length)
    chosen = set(json.loads(spec.new_documents.read_text()))
    new, known = (
        Windows([ids for shard in shards for ids in select_documents(shard, chosen, inside=inside)], length)
        for inside in (True, False)
    )
    return Mixture(new, known, spec.replay_weight)


def validation_pairs(spec: TrainSpec) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets (T,) to measure while training; of conversations the first ones, of pairs the chosen side."""
    shards = [open_tokens(path, spec.tokenizer_sha256) for path in spec.validation_shards]
    length = spec.model.context_length
    if spec.objective == "text":
        return validation_windows([shard.ids for shard in shards], length, spec.train.evaluation_tokens)
    documents = documents_of(shards)[:: 2 if spec.objective == "preferences" else 1]
    pairs, n_tokens = [], 0
    for document in documents:
        if n_tokens >= spec.train.evaluation_tokens:
            break
        inputs, targets = np.zeros(length, np.int64), np.full(length, PADDING, np.int64)
        inputs[: len(document)], targets[: len(document)] = document.inputs, document.targets
        pairs.append((inputs, targets))
        n_tokens += len(document)
    return pairs


def validation_windows(shards: list[np.ndarray], context_length: int, n_tokens: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """About `n_tokens` tokens of the validation stream, in windows spread evenly over it: (inputs, targets)."""
    windows = []
    for ids in shards:
        windows += [(ids, start) for start in range(0, len(ids) - 1, context_length)]
    wanted = max(1, n_tokens // context_length)
    chosen = windows if len(windows) <= wanted else [windows[i * len(windows) // wanted] for i in range(wanted)]
    pairs = []
    for ids, start in chosen:
        piece = ids[start : start + context_length + 1].astype(np.int64)
        inputs, targets = np.zeros(context_length, np.int64), np.full(context_length, PADDING, np.int64)
        inputs[: len(piece) - 1], targets[: len(piece) - 1] = piece[:-1], piece[1:]
        pairs.append((inputs, targets))
    return pairs


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and SIGINT into a question that the loop asks between steps."""
    received: list[int] = []
    previous = {number: signal.signal(number, lambda n, _: received.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _process_group(device: str) -> Iterator[None]:
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # The shared-memory op serves inference only, and compiling it costs a minute on a CPU.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", verbose=False)
    try:
        yield
    finally:
        deepspeed.comm.destroy_process_group()


def _deepspeed_config(spec: TrainSpec, micro_batch: int, accumulation: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # DeepSpeed clips at 1.0 unless it is told otherwise.
        "gradient_clipping": spec.train.gradient_clipping,
        "zero_optimization": {"stage": spec.machine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


def _rows_per_batch(spec: TrainSpec) -> int:
    """Windows in a step, or pairs of them."""
    return spec.train.tokens_per_batch // spec.model.context_length // (2 if spec.objective == "preferences" else 1)


def _micro_batch(spec: TrainSpec) -> tuple[int, int]:
    """Rows of a forward pass and passes in a step, for one rank."""
    per_rank = _rows_per_batch(spec) // spec.machine.ranks
    wanted = spec.machine.windows_per_micro_batch or per_rank
    micro_batch = next(size for size in range(min(wanted, per_rank), 0, -1) if per_rank % size == 0)
    return micro_batch, per_rank // micro_batch


def _save_trained(model: Transformer, spec: TrainSpec) -> None:
    """Write the model; rank 0 only has files to write."""
    import deepspeed

    parameters = list(model.parameters())
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None, enabled=spec.machine.zero_stage == 3):
        if dist.get_rank():
            return
        if spec.adapter:
            spec.out.mkdir(parents=True, exist_ok=True)
            save_file(adapter_weights(model), spec.out / ADAPTER_WEIGHTS)
            merge_adapters(model)
        save_model(model, spec.out, spec.tokenizer_sha256)


class _Metrics:
    """The file of JSON lines; lines of steps that a resume does again are dropped first."""

    def __init__(self, path: Path, first_step: int) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] < first_step:
                    kept.append(line + "\n")
            except ValueError:
                continue  # the line that a kill cut short
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(kept))
        self.file = path.open("a", buffering=1)

    def write(self, **values: float) -> None:
        self.file.write(json.dumps(values) + "\n")

    def sync(self) -> None:
        os.fsync(self.file.fileno())


def train(spec: TrainSpec, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Train one model as rank RANK of WORLD_SIZE (environment), from the newest checkpoint if there is one.

    Args:
        spec: what to train, on which tokens, where.
        progress: called with (done tokens, all tokens, "tokens") after every step, on rank 0.

    Returns:
        Figures: parameters, steps, step_seconds, tokens_per_second, the last losses, resumed_from_step.

    Raises:
        Stopped: after SIGTERM or SIGINT, once a checkpoint is written.
        Diverged: if the loss is not finite.
        ResumeError: if the checkpoint that exists belongs to another kind of machine.
        TokensError: if the tokens are damaged or made by another tokenizer.
    """
    import deepspeed

    config, machine = spec.train, spec.machine
    torch.set_num_threads(machine.threads or max(1, (os.cpu_count() or 1) // machine.ranks))
    device = "cpu" if machine.device == "cpu" else f"cuda:{os.environ['LOCAL_RANK']}"
    if machine.device == "cuda":
        torch.cuda.set_device(device)
    with _process_group(machine.device), _stop_signal() as stop_requested:
        rank = dist.get_rank()
        rows, validation = training_rows(spec), validation_pairs(spec)
        token_bytes = np.array(json.loads(spec.token_bytes.read_text()), np.int64)

        model = Transformer(spec.model, spec.vocabulary_size)
        if spec.start:
            model.load_state_dict(load_model(spec.start)[0].state_dict())
        else:
            model.initialize(config.seed)
        n_parameters = count_parameters(model)
        if spec.adapter:
            add_adapters(model, spec.adapter, config.seed)
        model.activation_checkpointing = machine.activation_checkpointing == "full"
        model.autocast_dtype = torch.bfloat16 if config.dtype == "bfloat16" else None
        n_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        model.to(device)
        micro_batch, accumulation = _micro_batch(spec)
        engine, optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(config, model),  # type: ignore[arg-type]
            config=_deepspeed_config(spec, micro_batch, accumulation),
        )
        first_step, state = load_checkpoint(engine, spec.work, ranks=machine.ranks, zero_stage=machine.zero_stage)
        if machine.compile:
            for block in model.blocks:
                block.compile()

        metrics = _Metrics(spec.work / METRICS, first_step) if rank == 0 else None
        step_seconds = state.get("step_seconds", 0.0)
        evaluate_after = {round((i + 1) * config.n_steps / config.evaluations) - 1 for i in range(config.evaluations)}
        rows_per_batch, rows_per_rank = _rows_per_batch(spec), micro_batch * accumulation

        def save(step: int) -> None:
            if metrics:
                metrics.sync()
            kept = {
                "step_seconds": step_seconds,
                "bits_per_byte": bits_per_byte,
                "ranks": machine.ranks,
                "zero_stage": machine.zero_stage,
            }
            save_checkpoint(engine, spec.work, step, kept, machine.keep_checkpoints)

        last_save, loss, bits_per_byte = time.monotonic(), math.nan, state.get("bits_per_byte")
        for step in range(first_step, config.n_steps):
            started = time.perf_counter()
            share = set_rates(config, optimizer, step)
            batch = {
                name: torch.from_numpy(values).to(device)
                for name, values in rows.batch(step, rows_per_batch, config.seed, rank * rows_per_rank, rows_per_rank).items()
            }
            # Micro-batches have different numbers of targets; so each is divided by the mean of all ranks.
            mean_targets = rows.trained_tokens(step, rows_per_batch, config.seed) / (machine.ranks * accumulation)
            total = torch.zeros((), device=device)
            for start in range(0, rows_per_rank, micro_batch):
                micro = {name: values[start : start + micro_batch] for name, values in batch.items()}
                micro_loss = engine(**micro, denominator=max(mean_targets, 1.0), beta=spec.beta)
                engine.backward(micro_loss)
                engine.step()
                total += micro_loss.detach() / accumulation
            # One message carries the mean loss, a request to stop and a wish to save.
            due = time.monotonic() - last_save >= machine.checkpoint_every_seconds
            shared = torch.stack(
                (total / machine.ranks, total.new_tensor(stop_requested()), total.new_tensor(rank == 0 and due))
            )
            dist.all_reduce(shared)
            loss, stop, save_now = shared.tolist()
            seconds = time.perf_counter() - started
            step_seconds += seconds
            if not math.isfinite(loss):
                raise Diverged(
                    f"the loss is {loss} at step {step}: lower train_model.learning_rate (now {config.learning_rate}) "
                    f"or train_model.muon_learning_rate (now {config.muon_learning_rate})"
                )
            record: dict[str, float] = {
                "step": step,
                "tokens": (step + 1) * config.tokens_per_batch,
                "loss": loss,
                "learning_rate": config.learning_rate * share,
                "seconds": seconds,
            }
            if step in evaluate_after and validation:
                model.eval()
                measured = measure_held_out(engine.module, validation, token_bytes, device=device)
                model.train()
                bits_per_byte = record["bits_per_byte"] = measured.bits_per_byte
            if metrics:
                metrics.write(**record)
                progress((step + 1) * config.tokens_per_batch, config.n_steps * config.tokens_per_batch, "tokens")
            if stop:
                save(step + 1)
                raise Stopped(f"stopped after step {step + 1} of {config.n_steps}; the same command goes on from there")
            if save_now and step + 1 < config.n_steps:
                save(step + 1)
                last_save = time.monotonic()
        _save_trained(model, spec)
        if metrics:
            metrics.sync()
    speed = config.n_steps * config.tokens_per_batch / step_seconds
    return {
        "parameters": n_parameters,
        "trained_parameters": n_trained,
        "vocabulary_size": spec.vocabulary_size,
        "steps": config.n_steps,
        "tokens": config.n_steps * config.tokens_per_batch,
        "epochs": round(config.n_steps * rows_per_batch / len(rows), 3),
        "final_loss_nats": loss,
        "validation_bits_per_byte": bits_per_byte,
        "step_seconds": round(step_seconds, 3),
        "tokens_per_second": round(speed, 1),
        "flops_per_second": round(speed * flops_per_token(spec.model, spec.vocabulary_size)),
        "resumed_from_step": first_step or None,
    }
