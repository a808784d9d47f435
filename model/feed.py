"""The batches of a training, made ready by a thread while the step before them computes."""

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.objectives.objective import Rows
from model.train_spec import TrainSpec

_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """One rank's share of the batch of a step.

    Attributes:
        micro_batches: what the objective takes, by name, on the device: one for each forward pass.
        mean_targets: what the loss of a micro-batch is divided by. Micro-batches have different numbers of targets, so it is
            the mean over all of them, on all ranks.
    """

    step: int
    micro_batches: list[dict[str, Tensor]]
    mean_targets: float
    ready: Any = None


class Feed:
    """Gives one batch after another, from the step that is taken first.

    Args:
        rows: what batches are made of.
        rank: whose share it is.
        device: where it is needed. On CUDA it is copied from pinned memory on a stream of its own.
    """

    def __init__(self, spec: TrainSpec, rows: Rows, rank: int, device: str, first_step: int) -> None:
        self.spec, self.rows, self.rank, self.device = spec, rows, rank, device
        self.stream = torch.cuda.Stream() if device != "cpu" else None  # type: ignore[no-untyped-call]
        self.queue: queue.Queue[Batch | Exception] = queue.Queue(_AHEAD)
        self.is_over = threading.Event()
        self.waited_seconds = 0.0
        """How long the training waited for its batches, all together."""
        self.thread = threading.Thread(target=self._fill, args=(first_step,), name="feed", daemon=True)
        self.thread.start()

    def take(self) -> Batch:
        """The next batch; waits for it if it must."""
        started = time.perf_counter()
        batch = self.queue.get()
        self.waited_seconds += time.perf_counter() - started
        if isinstance(batch, Exception):
            raise batch
        if batch.ready is not None:
            current = torch.cuda.current_stream()
            current.wait_event(batch.ready)
            for tensors in batch.micro_batches:
                for tensor in tensors.values():
                    tensor.record_stream(current)
        return batch

    def close(self) -> None:
        """End the thread."""
        self.is_over.set()
        while self.thread.is_alive():
            try:
                self.queue.get_nowait()
            except queue.Empty:
                self.thread.join(0.01)

    def _fill(self, first_step: int) -> None:
        try:
            for step in range(first_step, self.spec.train.n_steps):
                self.queue.put(self._make(step))
                if self.is_over.is_set():
                    return
        except Exception as error:  # raised where it is taken
            self.queue.put(error)

    def _make(self, step: int) -> Batch:
        spec, seed = self.spec, self.spec.train.seed
        micro_batch, accumulation = spec.micro_batch
        first = self.rank * micro_batch * accumulation
        micro_batches = []
        for start in range(first, first + micro_batch * accumulation, micro_batch):
            arrays = self.rows.batch(step, spec.rows_per_batch, seed, start, micro_batch)
            micro_batches.append({name: torch.from_numpy(values) for name, values in arrays.items()})
        targets = self.rows.trained_targets(step, spec.rows_per_batch, seed)
        mean_targets = max(1.0, targets / (spec.machine.ranks * accumulation))
        if self.stream is None:
            return Batch(step, micro_batches, mean_targets)
        with torch.cuda.stream(self.stream):
            copied = [
                {
                    name: tensor.contiguous().pin_memory().to(self.device, non_blocking=True)
                    for name, tensor in tensors.items()
                }
                for tensors in micro_batches
            ]
            return Batch(step, copied, mean_targets, self.stream.record_event())
