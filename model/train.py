"""The training loop, as one rank runs it: from a spec to safetensors.

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
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from model.average import WeightAverage
from model.best import forget_others, keep_if_best, load_best
from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import TrainConfig, flops_per_token
from model.deepspeed_engine import Learner, process_group, start_engine, whole_parameters
from model.errors import InputError
from model.held_out import measure_held_out
from model.machine import TrainingMachine
from model.optimizer import build_optimizer, set_rates
from model.tokens import Tokens, open_tokens
from model.train_spec import METRICS, TrainSpec
from model.transformer import Transformer, count_parameters
from model.weights import load_model, save_model


class Stopped(Exception):
    """Training was asked to stop; a checkpoint was written first."""


class Diverged(InputError):
    """The loss is not finite any more."""


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and SIGINT, to any rank, into a question that all ranks ask between micro-batches.

    All get the same answer, so each must ask as often as the others.
    """
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, lambda n, _: received.append(n)) for number in numbers}
    # Over gloo on CPUs: to ask NCCL would make every micro-batch wait for the device.
    group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None

    def is_asked() -> bool:
        asked = torch.tensor(float(bool(received)))
        if group is not None:
            dist.all_reduce(asked, dist.ReduceOp.MAX, group)
        return bool(asked)

    try:
        yield is_asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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

    def write(self, values: dict[str, float]) -> None:
        self.file.write(json.dumps(values) + "\n")

    def sync(self) -> None:
        os.fsync(self.file.fileno())


def _claim_device(machine: TrainingMachine) -> str:
    """Set this rank's threads, and take its device."""
    torch.set_num_threads(machine.threads or max(1, (os.cpu_count() or 1) // machine.ranks))
    if machine.device == "cpu":
        return "cpu"
    # Products of float32 matrices in TF32, ten times as fast on tensor cores; the weights stay float32.
    torch.set_float32_matmul_precision("high")
    device = f"cuda:{os.environ['LOCAL_RANK']}"
    torch.cuda.set_device(device)
    return device


def _first_weights(spec: TrainSpec) -> Transformer:
    model = Transformer(spec.model, spec.vocabulary_size)
    if spec.start:
        model.load_state_dict(load_model(spec.start)[0].state_dict())
    else:
        model.initialize(spec.train.seed)
    model.activation_checkpointing = spec.machine.activation_checkpointing == "full"
    return model


def _save_trained(model: Transformer, spec: TrainSpec, state: dict[str, Any]) -> None:
    """Write the best or the last weights; only the first rank has files to write."""
    with whole_parameters(model, spec.machine.zero_stage):
        if dist.get_rank() == 0:
            if state["best_steps"] not in (None, spec.train.n_steps):
                load_best(model, spec.work, state)
            if spec.adapter:
                spec.adapter.finish(model, spec.out)
            save_model(model, spec.out, spec.tokenizer_sha256)


def _agree(loss: torch.Tensor, save: bool) -> tuple[float, bool]:
    """Mean loss of all ranks, and whether any of them wants to save: one message."""
    shared = torch.stack((loss / dist.get_world_size(), loss.new_tensor(save)))
    dist.all_reduce(shared)
    mean, save_now = shared.tolist()
    return mean, bool(save_now)


def _first_ranks(figure: float) -> float:
    """What the first rank measured: all must decide alike, whatever the last bits of theirs."""
    figures = [figure]
    dist.broadcast_object_list(figures, src=0)
    return figures[0]


def train(
    spec: TrainSpec,
    progress: Callable[[int, int, str, str], None],
    enter: Callable[[str], None] = lambda phase: None,
) -> dict[str, Any]:
    """Train one model as rank RANK of WORLD_SIZE (environment), from the newest checkpoint if there is one.

    Args:
        spec: what to train, on which tokens, where.
        progress: called with (done tokens, all tokens, "tokens", loss and speed in words) after every step, on rank 0.
        enter: called by every rank with what it begins: step, validation or save; before them it loads.

    Returns:
        Figures: parameters, steps, step_seconds, tokens_per_second, the last losses, resumed_from_step.

    Raises:
        Stopped: after SIGTERM or SIGINT, once a checkpoint is written.
        Diverged: if the loss is not finite.
        ResumeError: if the checkpoint that exists belongs to another kind of machine.
        TokensError: if the tokens are damaged or made by another tokenizer.
    """
    config, machine = spec.train, spec.machine
    device = _claim_device(machine)
    with process_group(machine.device), _stop_signal() as is_asked_to_stop:
        # What is read: rows of batches, and held-out windows to measure on meanwhile.
        context_length = spec.window_length
        rows = spec.objective.open_rows(_open(spec, spec.train_shards), context_length)
        held_out, n_tokens = _open(spec, spec.validation_shards), config.evaluation_tokens
        validation = spec.objective.validation_windows(held_out, context_length, n_tokens)
        token_bytes = np.array(json.loads(spec.token_bytes.read_text()), np.int64)

        # What is trained, and where it goes on. Rates, batches and seeds are functions of the step, so the
        # step is all there is to know.
        learner, sizes = _learner(spec, device)
        engine, optimizer = start_engine(
            learner,
            build_optimizer(config, learner.model),
            *spec.micro_batch,
            config.largest_gradient_norm,
            machine.zero_stage,
        )
        average = WeightAverage(learner.model, config.averaging, config.n_steps)
        of_machine = {"ranks": machine.ranks, "zero_stage": machine.zero_stage}
        first_step, saved = load_checkpoint(engine, spec.work, **of_machine, load_more=average.load)
        best = {"best_steps": None, "best_bits_per_byte": None, "best_sha256": None}
        unmeasured = {"validation_bits_per_byte_before": None, "validation_bits_per_byte": None}
        state = {"step_seconds": 0.0, **unmeasured, **best, **saved, **of_machine}
        if machine.compile:
            for block in learner.model.blocks:
                block.compile()

        # What is told on the way, by the first rank.
        metrics = _Metrics(spec.work / METRICS, first_step) if dist.get_rank() == 0 else None
        measure_after = {
            round((i + 1) * config.n_steps / config.evaluations) - 1 for i in range(config.evaluations)
        }
        last_save, save_seconds = time.monotonic(), 0.0

        def measure() -> float:
            enter("validation")
            learner.eval()
            measured = measure_held_out(engine.module, validation, token_bytes, device=device)
            learner.train()
            enter("step")
            return _first_ranks(measured.bits_per_byte)

        if spec.start and validation and not first_step:
            state["validation_bits_per_byte_before"] = measure()

        def save(steps: int) -> None:
            enter("save")
            if metrics:
                metrics.sync()
            save_checkpoint(engine, spec.work, steps, state, machine.keep_checkpoints, average.save)
            if metrics:
                forget_others(spec.work, state)
            enter("step")

        enter("step")
        for step in range(first_step, config.n_steps):
            started = time.perf_counter()
            share = set_rates(config, optimizer, step)
            due = bool(metrics) and time.monotonic() - last_save >= seconds_between_saves(
                machine, save_seconds
            )
            own_loss = _take_step(spec, engine, rows, step, device, is_asked_to_stop)
            if own_loss is None:
                # Nothing of the step is in the weights, so the last finished one is saved.
                save(step)
                raise _stopped(step, config)
            average.update(step + 1)
            loss, save_now = _agree(own_loss, due)
            state["loss_nats"] = loss
            seconds = time.perf_counter() - started
            state["step_seconds"] += seconds
            _check_finite(loss, step, config)
            done = (step + 1) * config.tokens_per_batch
            record = {"step": step, "tokens": done, "loss": loss}
            record |= {"learning_rate": config.learning_rate * share, "seconds": seconds}
            if step in measure_after and validation:
                with average.applied():
                    state["validation_bits_per_byte"] = record["validation_bits_per_byte"] = measure()
                    if config.keep == "best":
                        keep_if_best(
                            learner.model, spec.work, state, step + 1, machine.zero_stage, metrics is not None
                        )
            if metrics:
                metrics.write(record)
                progress(done, config.n_steps * config.tokens_per_batch, "tokens", _told(record, state))
            stop = is_asked_to_stop()
            if stop or (save_now and step + 1 < config.n_steps):
                started = time.monotonic()
                save(step + 1)
                last_save = time.monotonic()
                save_seconds = last_save - started
            if stop:
                raise _stopped(step + 1, config)
        enter("save")
        with average.applied():
            _save_trained(learner.model, spec, state)
        if metrics:
            metrics.sync()
    epochs = round(config.n_steps * spec.rows_per_batch / len(rows), 3)
    return {**sizes, **_figures(spec, state), "epochs": epochs, "resumed_from_step": first_step or None}


_SHARE_OF_SAVING = 0.01


def seconds_between_saves(machine: TrainingMachine, save_seconds: float) -> float:
    """How long training goes on after a checkpoint, so that saving takes about a hundredth of the time at most.

    Args:
        save_seconds: what the last checkpoint took; 0 before the first.
    """
    if not machine.checkpoint_every_seconds:
        return 0.0
    return max(machine.checkpoint_every_seconds, save_seconds * (1 / _SHARE_OF_SAVING - 1))


def _told(record: dict[str, Any], state: dict[str, Any]) -> str:
    """Loss, held-out figure and speed, for a person who watches."""
    held_out = state["validation_bits_per_byte"]
    measured = f"held out {held_out:.3f} bits/byte, " if held_out else ""
    speed = record["tokens"] / state["step_seconds"]
    return f"loss {record['loss']:.2f}, {measured}{speed:,.0f} tokens/s"


def _check_finite(loss: float, step: int, config: TrainConfig) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss is {loss} at step {step}: lower train_model.learning_rate (now {config.learning_rate}) "
            f"or train_model.muon_learning_rate (now {config.muon_learning_rate})"
        )


def _stopped(steps: int, config: TrainConfig) -> Stopped:
    return Stopped(f"stopped after step {steps} of {config.n_steps}; the same command goes on from there")


def _learner(spec: TrainSpec, device: str) -> tuple[Learner, dict[str, int]]:
    """The model with its first weights on its device, and how many of them there are and are trained."""
    model = _first_weights(spec)
    sizes = {"parameters": count_parameters(model)}
    if spec.adapter:
        spec.adapter.add_to(model, spec.train.seed)
    sizes["trained_parameters"] = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    dtype = torch.bfloat16 if spec.train.dtype == "bfloat16" else None
    return Learner(model.to(device), spec.objective, dtype), sizes


def _open(spec: TrainSpec, paths: list[Path]) -> list[Tokens]:
    return [open_tokens(path, spec.tokenizer_sha256) for path in paths]


def _take_step(
    spec: TrainSpec, engine: Any, rows: Any, step: int, device: str, is_asked_to_stop: Callable[[], bool]
) -> torch.Tensor | None:
    """One optimizer step on this rank's share of the batch of `step`.

    Returns:
        Its mean loss, a scalar on the device; None if it was given up between micro-batches, since a step may take
        longer than whoever asks to stop will wait.
    """
    micro_batch, accumulation = spec.micro_batch
    rows_per_rank, seed = micro_batch * accumulation, spec.train.seed
    arrays = rows.batch(step, spec.rows_per_batch, seed, dist.get_rank() * rows_per_rank, rows_per_rank)
    batch = {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
    # Micro-batches have different numbers of targets, so each is divided by the mean over all of them, on all ranks.
    mean_targets = rows.trained_targets(step, spec.rows_per_batch, seed) / (spec.machine.ranks * accumulation)
    total = torch.zeros((), device=device)
    for start in range(0, rows_per_rank, micro_batch):
        if start and is_asked_to_stop():
            return None
        micro = {name: values[start : start + micro_batch] for name, values in batch.items()}
        loss = engine(**micro, denominator=max(mean_targets, 1.0))
        engine.backward(loss)
        engine.step()
        total += loss.detach() / accumulation
    return total


def _figures(spec: TrainSpec, state: dict[str, Any]) -> dict[str, Any]:
    """What a finished training came to, and how fast it was."""
    tokens = spec.train.n_steps * spec.train.tokens_per_batch
    speed = tokens / state["step_seconds"]
    return {
        "vocabulary_size": spec.vocabulary_size,
        "steps": spec.train.n_steps,
        "tokens": tokens,
        "final_loss_nats": state["loss_nats"],
        "validation_bits_per_byte_before": state["validation_bits_per_byte_before"],
        "validation_bits_per_byte": state["validation_bits_per_byte"],
        "best_validation_bits_per_byte": state["best_bits_per_byte"],
        "kept_step": state["best_steps"] or spec.train.n_steps,
        "step_seconds": round(state["step_seconds"], 3),
        "tokens_per_second": round(speed, 1),
        "flops_per_second": round(speed * flops_per_token(spec.model, spec.vocabulary_size)),
    }
