"""The training loop, as one rank runs it: from a spec to safetensors.

The loop talks through files: metrics go to a file of JSON lines, checkpoints below the
working folder, the finished model below the output folder.

The device is never waited for within a step: what a step measured is read when the next one is under way.
"""

import json
import math
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import current_flash_attention_impl

from model.average import WeightAverage
from model.best import forget_others, keep_if_best, load_best
from model.budget import count
from model.checkpoint import Checkpoints
from model.config import TrainConfig
from model.deepspeed_engine import Learner, process_group, start_engine
from model.device import check_documents_apart, claim_device
from model.errors import InputError
from model.feed import Batch, Feed
from model.first_weights import FirstModel, whole_model
from model.goodput import Attempts, speed
from model.held_out import measure_held_out
from model.machine import TrainingMachine
from model.masters import Masters
from model.metrics import JsonLines, Taken, told
from model.optimizer import build_optimizer, set_rates
from model.signals import Signals, signals
from model.spikes import Spikes
from model.tokens import Tokens, open_tokens
from model.trackers import Trackers
from model.train_spec import METRICS, SPIKES, TrainSpec
from model.weights import save_model, save_weights


class Stopped(Exception):
    """Training was asked to stop; a checkpoint was written first."""


class Diverged(InputError):
    """The loss is not finite any more."""


def _save_trained(masters: Masters, spec: TrainSpec, state: dict[str, Any]) -> None:
    """Write the best or the last weights; only the first rank has files to write."""
    is_last = state["best_steps"] in (None, spec.train.n_steps)
    weights = masters.gather() if is_last else {}
    if masters.rank:
        return
    weights = weights or load_best(spec.work, state)
    if spec.adapter:
        model = whole_model(spec)
        model.load_state_dict(weights, strict=False)
        spec.adapter.finish(model, spec.out)
        save_model(model, spec.out, spec.tokenizer_sha256)
    else:
        save_weights(weights, spec.model, spec.vocabulary_size, spec.out, spec.tokenizer_sha256)


def train(
    spec: TrainSpec,
    progress: Callable[[int, int, str, str], None],
    enter: Callable[[str], None] = lambda phase: None,
) -> dict[str, Any]:
    """Train one model as rank RANK of WORLD_SIZE (environment), from the newest checkpoint if there is one.

    Args:
        spec: what to train, on which tokens, where.
        progress: called with (done tokens, all tokens, "tokens", loss and speed in words) after every step; the words are those
            of rank 0.
        enter: called by every rank with what it begins: step, validation or save; before them it loads.

    Returns:
        Figures: parameters, steps, step_seconds, tokens_per_second, the last losses, resumed_from_step.

    Raises:
        Stopped: after SIGTERM or SIGINT, once a checkpoint is written.
        Diverged: if the loss is not finite.
        ResumeError: if the checkpoint that exists lacks weights of this model.
        TokensError: if the tokens are damaged or made by another tokenizer.
    """
    began = Attempts(spec.work, spec.work / METRICS) if os.environ["RANK"] == "0" else None
    device = claim_device(spec.machine, spec.model.head_dim)
    if spec.train.isolate_documents or spec.objective.isolate_documents:
        check_documents_apart(device, spec.train.dtype)
    # Products of float32 matrices in TF32, ten times as fast on tensor cores; the weights stay float32.
    torch.set_float32_matmul_precision("high")
    with process_group(spec.machine.device), signals() as heard:
        training = _Training(spec, device, heard, progress, enter, began)
        try:
            training.run()
        finally:
            training.feed.close()
            training.trackers.close()
        return training.figures()


class _Training:
    """One training on one rank: what it is made of, and the loop."""

    def __init__(
        self,
        spec: TrainSpec,
        device: str,
        heard: Signals,
        progress: Callable[[int, int, str, str], None],
        enter: Callable[[str], None],
        attempts: Attempts | None,
    ) -> None:
        self.spec, self.device, self.heard, self.attempts = spec, device, heard, attempts
        self.progress, self.enter = progress, enter
        config = spec.train

        # What is read: rows of batches, and held-out windows to measure on meanwhile.
        self.rows = spec.objective.open_rows(_open(spec, spec.train_shards), spec.window_length)
        held_out = _open(spec, spec.validation_shards)
        self.validation = spec.objective.validation_windows(
            held_out, spec.window_length, config.evaluation_tokens
        )
        self.token_bytes = np.array(json.loads(spec.token_bytes.read_text()), np.int64)

        # What is trained.
        first = FirstModel(spec)
        model = first.model
        n_parameters = count(spec.model, spec.vocabulary_size).total
        beside = spec.adapter.beside(spec.model).parameters if spec.adapter else n_parameters
        self.sizes = {"parameters": n_parameters, "trained_parameters": beside}
        model.activation_checkpointing = spec.machine.activation_checkpointing
        self.learner = Learner(model.to(device), spec.objective)
        self.optimizer = build_optimizer(config, model)
        self.engine = start_engine(self.learner, self.optimizer, spec)
        self.masters = Masters(model, self.engine)
        self.optimizer.place(self.masters)
        first.put_into(self.masters)
        if spec.is_compiled:
            for block in model.blocks:
                block.compile()

        # Where it goes on. Rates, batches and seeds are functions of the step, so the step is all there is to know.
        self.average = WeightAverage(self.masters.tensors(), config.averaging, config.n_steps)
        self.checkpoints = Checkpoints(
            spec.work,
            self.masters,
            self.optimizer,
            self.average.means,
            spec.machine.keep_checkpoints,
            3600 * spec.machine.keep_checkpoint_every_hours,
        )
        self.first_step, saved = self.checkpoints.load()
        best = {"best_steps": None, "best_bits_per_byte": None, "best_sha256": None}
        unmeasured = {"validation_bits_per_byte_before": None, "validation_bits_per_byte": None}
        self.state: dict[str, Any] = {"step_seconds": 0.0, **unmeasured, **best, **saved}
        self.spikes = Spikes(device, self.masters.ranks)
        if "last_steps" in saved:
            self.spikes.load(saved["last_steps"])
        if "skip" in (config.spikes, config.not_finite):
            self.optimizer.judge = self._is_left_out

        # What is told on the way, by the first rank.
        is_first = self.masters.rank == 0
        self.metrics = JsonLines(spec.work / METRICS, self.first_step) if is_first else None
        self.spiked = JsonLines(spec.work / SPIKES, self.first_step) if is_first else None
        settings = {**spec.model.model_dump(), **spec.train.model_dump(), **self.sizes}
        identity = spec.work.name[-32:]
        names = spec.machine.log_to if is_first else ()
        self.trackers = Trackers(names, spec.work, identity, settings, self.first_step)
        self.before: Taken | None = None
        self.told_seconds = self.state["step_seconds"]
        self.saved_at, self.save_seconds = time.monotonic(), 0.0
        self.feed = Feed(spec, self.rows, self.masters.rank, device, self.first_step)

    def run(self) -> None:
        """All steps that are left, and then the model."""
        config = self.spec.train
        evaluations = {
            round((i + 1) * config.n_steps / config.evaluations) for i in range(config.evaluations)
        }
        if self.spec.start and self.validation and not self.first_step:
            self.state["validation_bits_per_byte_before"] = self._measure()
        self.enter("step")
        started = time.perf_counter()
        for step in range(self.first_step, config.n_steps):
            share = set_rates(config, self.optimizer, step)
            figures = self._take_step(self.feed.take())
            if figures is None:
                # Nothing of the step is in the weights, so the last finished one is saved.
                self._save(step, last=True)
                raise _stopped(step, config)
            self.average.update(step + 1)
            taken = self._on_its_way(step, config.learning_rate * share, figures)
            self._tell(self.before)
            self.before = taken
            stop, save_now = self.heard.ask(self._is_save_due())
            done = step + 1
            if done in evaluations or stop or save_now or done == config.n_steps:
                self._tell_last(done in evaluations and bool(self.validation), started)
                if stop or (save_now and done < config.n_steps):
                    self._save(done, last=stop)
                if stop:
                    raise _stopped(done, config)
            else:
                self.state["step_seconds"] += time.perf_counter() - started
            started = time.perf_counter()
        self.checkpoints.wait()
        self.enter("save")
        with self.masters.replaced_by(self.average.means or None):
            _save_trained(self.masters, self.spec, self.state)
        if self.metrics:
            self.metrics.sync()

    def _take_step(self, batch: Batch) -> Tensor | None:
        """One optimizer step on this rank's share of a batch.

        Returns:
            What `Spikes.judge` says of it, on the device; None if it was given up between micro-batches, since a step may take
            longer than whoever asks to stop will wait.
        """
        accumulation = len(batch.micro_batches)
        total = torch.zeros((), device=self.device)
        for number, tensors in enumerate(batch.micro_batches):
            if number and self.heard.ask()[0]:
                return None
            loss = self.engine(**tensors, denominator=batch.mean_targets)
            self.engine.backward(loss)
            total += loss.detach() / accumulation
            if number == accumulation - 1:
                self.spikes.begin(total)
                if self.masters.stage == 0:
                    # Later they are clipped, and gone.
                    self._judge()
            self.engine.step()
        self.masters.gather_small()
        return self._judge()

    def _judge(self) -> Tensor:
        """What the step that is taken measured, before its gradient is clipped; asked by the optimizer, or after it."""
        return self.spikes.judge(self._gradient_norm)

    def _is_left_out(self) -> Tensor:
        """1.0 if the step is to move nothing, else 0.0."""
        judged, config = self._judge(), self.spec.train
        is_spike = judged[2] if config.spikes == "skip" else torch.zeros_like(judged[2])
        is_broken = (~torch.isfinite(judged[:2])).any().to(judged)
        return torch.maximum(is_spike, is_broken) if config.not_finite == "skip" else is_spike

    def _gradient_norm(self) -> Tensor:
        """Norm of the gradient of all ranks, before it is clipped."""
        if self.masters.stage == 0:
            gradients = [weight.grad for weight in self.masters.tensors() if weight.grad is not None]
            return torch.nn.utils.get_total_norm(gradients)
        # DeepSpeed knows it before it clips, and its engine hears of it later.
        return torch.as_tensor(self.engine.optimizer._global_grad_norm, device=self.device)

    def _on_its_way(self, step: int, learning_rate: float, figures: Tensor) -> Taken:
        """Begin to bring what a step measured to the host."""
        if self.device == "cpu":
            return Taken(step, learning_rate, figures, None)
        there = torch.empty_like(figures, device="cpu", pin_memory=True)
        there.copy_(figures, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return Taken(step, learning_rate, there, event)

    def _tell(self, taken: Taken | None) -> None:
        """Read what a step measured, and write it down."""
        if taken is None:
            return
        loss, norm, spike = taken.arrive().numpy().tolist()
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        in_a_row = 0 if is_finite else self.state.get("skipped_in_a_row", 0) + 1
        if not is_finite and (self.spec.train.not_finite == "stop" or in_a_row >= _MOST_SKIPPED):
            raise _diverged(loss, norm, taken.step, self.spec.train)
        self.state["skipped_in_a_row"] = in_a_row
        self.state["skipped_steps"] = self.state.get("skipped_steps", 0) + (not is_finite)
        self.state["spikes"] = self.state.get("spikes", 0) + bool(spike and is_finite)
        if is_finite:
            self.state["loss_nats"] = loss
        tokens, note = (taken.step + 1) * self.spec.train.tokens_per_batch, ""
        if self.metrics:
            record = {"step": taken.step, "tokens": tokens, "loss": loss, "gradient_norm": norm}
            record |= {"learning_rate": taken.learning_rate, "data_wait_seconds": self.feed.waited_seconds}
            record["seconds"] = self.state["step_seconds"] - self.told_seconds
            record["memory_bytes"] = _memory_bytes(self.device)
            record |= self._speed(self.spec.train.tokens_per_batch, record["seconds"])
            if not is_finite or (spike and self.spec.train.spikes == "skip"):
                record["skipped"] = 1
            if spike and is_finite:
                record["spike"] = 1
                self._name(record)
            self.feed.waited_seconds, self.told_seconds = 0.0, self.state["step_seconds"]
            self.metrics.write(record | taken.measured)
            self.trackers.log(taken.step, record | taken.measured)
            note = told(record, self.state)
        total = self.spec.train.n_steps * self.spec.train.tokens_per_batch
        self.progress(tokens, total, "tokens", note)

    def _speed(self, tokens: int, seconds: float) -> dict[str, float]:
        """How fast so many tokens were, and goodput up to now, which the first rank knows."""
        spec, state = self.spec, self.state
        figures = speed(tokens, seconds, spec.flops_per_token, _name_of(self.device), spec.machine.ranks)
        if self.attempts:
            figures["goodput"] = round(self.attempts.goodput(state["step_seconds"]), 4)
        return figures

    def _name(self, record: dict[str, Any]) -> None:
        """Write down what was read in a step that is a spike."""
        assert self.spiked is not None
        spec = self.spec
        documents = self.rows.document_ids(record["step"], spec.rows_per_batch, spec.train.seed)
        self.spiked.write(
            {name: record[name] for name in ("step", "loss", "gradient_norm")} | {"documents": documents}
        )

    def _tell_last(self, measure: bool, started: float) -> None:
        """Have nothing on its way any more: read the last step, and measure after it if that is due."""
        assert self.before is not None
        taken, self.before = self.before, None
        figures = taken.arrive()
        self.state["step_seconds"] += time.perf_counter() - started
        # A step that is left out leaves weights to measure; one that is not ends the training.
        if measure and (self.spec.train.not_finite == "skip" or bool(torch.isfinite(figures).all())):
            with self.masters.replaced_by(self.average.means or None):
                figure = self._measure()
                self.state["validation_bits_per_byte"] = taken.measured["validation_bits_per_byte"] = figure
                if self.spec.train.keep == "best":
                    keep_if_best(self.masters, self.spec.work, self.state, taken.step + 1)
        self._tell(taken)

    def _measure(self) -> float:
        """Held-out bits per byte of the weights as they are."""
        self.enter("validation")
        self.learner.eval()
        measured = measure_held_out(self._nats, self.validation, self.token_bytes, device=self.device)
        self.learner.train()
        self.enter("step")
        return measured.bits_per_byte

    def _nats(
        self, tokens: torch.Tensor, targets: torch.Tensor, ends: torch.Tensor | None = None
    ) -> torch.Tensor:
        nats: torch.Tensor = self.engine.module(tokens, targets=targets, ends=ends)
        return nats

    def _is_save_due(self) -> bool:
        """Whether the first rank finds that it is time; each rank hears of it here if its own files could not be written."""
        is_writing, machine = self.checkpoints.is_writing, self.spec.machine
        if self.metrics is None or (is_writing and machine.checkpoint_every_seconds):
            return False
        waited = time.monotonic() - self.saved_at
        return waited >= seconds_between_saves(machine, self.save_seconds)

    def _save(self, steps: int, *, last: bool) -> None:
        """Begin to write a checkpoint; if it is the last thing that this process does, wait for it."""
        started = time.monotonic()
        self.enter("save")
        if self.before:
            self._tell_last(False, time.perf_counter())
        # The one before is whole, so it is known which best weights it names.
        self.checkpoints.wait()
        if self.metrics and self.spiked:
            self.metrics.sync()
            self.spiked.sync()
            forget_others(self.spec.work, self.state)
        self.state["last_steps"] = self.spikes.state()
        self.checkpoints.save(steps, self.state)
        if last:
            self.checkpoints.wait()
            if self.metrics:
                forget_others(self.spec.work, self.state)
        self.enter("step")
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - started

    def figures(self) -> dict[str, Any]:
        """What a finished training came to, and how fast it was."""
        spec, state = self.spec, self.state
        tokens = spec.train.n_steps * spec.train.tokens_per_batch
        return {
            **self.sizes,
            "vocabulary_size": spec.vocabulary_size,
            "steps": spec.train.n_steps,
            "tokens": tokens,
            "final_loss_nats": state.get("loss_nats"),
            "validation_bits_per_byte_before": state["validation_bits_per_byte_before"],
            "validation_bits_per_byte": state["validation_bits_per_byte"],
            "best_validation_bits_per_byte": state["best_bits_per_byte"],
            "kept_step": state["best_steps"] or spec.train.n_steps,
            "step_seconds": round(state["step_seconds"], 3),
            **self._speed(tokens, state["step_seconds"]),
            "epochs": round(spec.train.n_steps * spec.rows_per_batch / len(self.rows), 3),
            "resumed_from_step": self.first_step or None,
            "damaged_checkpoints": sorted(self.checkpoints.damaged),
            "skipped_steps": state.get("skipped_steps", 0),
            "spikes": state.get("spikes", 0),
            "device": _name_of(self.device),
            # FA3 or FA4, where one of them took the place of torch's own.
            "flash_attention": current_flash_attention_impl(),
            "ranks": spec.machine.ranks,
        }


_SHARE_OF_SAVING = 0.01


def seconds_between_saves(machine: TrainingMachine, save_seconds: float) -> float:
    """How long training goes on after a checkpoint, so that saving takes about a hundredth of the time at most.

    Args:
        save_seconds: what the last checkpoint took; 0 before the first.
    """
    if not machine.checkpoint_every_seconds:
        return 0.0
    return max(machine.checkpoint_every_seconds, save_seconds * (1 / _SHARE_OF_SAVING - 1))


def _diverged(loss: float, norm: float, step: int, config: TrainConfig) -> Diverged:
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
    return Diverged(
        f"{what} at step {step}: lower learning_rate (now {config.learning_rate}) "
        f"or muon_learning_rate (now {config.muon_learning_rate})"
    )


def _stopped(steps: int, config: TrainConfig) -> Stopped:
    return Stopped(f"stopped after step {steps} of {config.n_steps}; the same command goes on from there")


_MOST_SKIPPED = 10
"""Steps in a row that may be skipped: a training whose every step is not finite is not one."""


def _name_of(device: str) -> str:
    return "cpu" if device == "cpu" else torch.cuda.get_device_name()


def _memory_bytes(device: str) -> int:
    """The most that was held so far: of the device, or of this process."""
    if device == "cpu":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return torch.cuda.max_memory_allocated()


def _open(spec: TrainSpec, paths: list[Path]) -> list[Tokens]:
    return [open_tokens(path, spec.tokenizer_sha256) for path in paths]
