"""Where the figures of a training go beside its own file, if that is asked for: TensorBoard, Weights & Biases, MLflow.

Each is its own library, installed with the extra `trackers` and imported when it is named. What a service needs to know, such as
WANDB_API_KEY or MLFLOW_TRACKING_URI, it reads from the environment.
"""

import importlib.util
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from model.errors import InputError
from model.files import read_json, write_whole

Name = Literal["tensorboard", "wandb", "mlflow"]
TENSORBOARD = "tensorboard"
"""Below the working folder: what `tensorboard --logdir` shows."""
_PROJECT, _MLFLOW_RUN = "scratchlm", "mlflow.json"
_MOST_WAITING, _CLOSING_SECONDS = 100_000, 15.0
"""Steps that a tracker may be behind, and how long its end is waited for: less than whoever stops a training waits."""


class Tracker(Protocol):
    """What takes the figures of each step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step."""

    def close(self) -> None:
        """Have them all where they belong."""


class _TensorBoard:
    def __init__(self, work: Path, identity: str, settings: dict[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What was told of steps that are done again is purged.
        self.writer: Any = SummaryWriter(str(work / TENSORBOARD), purge_step=first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    def __init__(self, work: Path, identity: str, settings: dict[str, Any], first_step: int) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=_PROJECT, id=identity, resume="allow", dir=str(work), config=settings
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    def __init__(self, work: Path, identity: str, settings: dict[str, Any], first_step: int) -> None:
        import mlflow

        self.mlflow: Any = mlflow
        known = read_json(work / _MLFLOW_RUN)
        mlflow.set_experiment(_PROJECT)
        run = mlflow.start_run(run_id=known["run"] if known else None, run_name=identity)
        if not known:
            write_whole(work / _MLFLOW_RUN, f'{{"run": "{run.info.run_id}"}}')
            mlflow.log_params(settings)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self.mlflow.end_run()


_KINDS: dict[str, Callable[[Path, str, dict[str, Any], int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "mlflow": _MLflow,
}


def check_trackers(names: tuple[Name, ...]) -> None:
    """Raise InputError if the library of one of these is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"machine.log_to names {name}, which is not installed: pip install 'scratchlm[trackers]'"
            )


class _Told:
    """One tracker on a thread of its own: what it waits for, a library or a network, the training does not."""

    def __init__(self, name: str, begin: Callable[[], Tracker]) -> None:
        self.name, self.begin = name, begin
        self.waiting: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(_MOST_WAITING)
        self.dropped, self.has_failed = 0, False
        # A daemon: a service that does not answer keeps no process.
        self.thread = threading.Thread(target=self._work, name=f"tells {name}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            tracker = self.begin()
            while figures := self.waiting.get():
                tracker.log(*figures)
            tracker.close()
        except Exception as error:
            self.has_failed = True
            self._say(f"gets no more figures, the training goes on: {type(error).__name__}: {error}")

    def _say(self, what: str) -> None:
        print(f"{self.name} {what}", file=sys.stderr, flush=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the figures of a step, unless it is too far behind."""
        if self.has_failed:
            return
        try:
            self.waiting.put_nowait((step, values))
        except queue.Full:
            self.dropped += 1

    def end(self) -> None:
        """Tell it that nothing more comes."""
        with suppress(queue.Full):
            self.waiting.put_nowait(None)

    def close(self, deadline: float) -> None:
        """Wait for its end, for as long as there is time until then."""
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self._say(f"did not take all figures in {_CLOSING_SECONDS:.0f} seconds, and is left")
        elif self.dropped and not self.has_failed:
            self._say(f"was too slow for the figures of {self.dropped} steps")


class Trackers:
    """All that were asked for. A tracker that fails or hangs costs no training: it is left out, and the log says why.

    Args:
        identity: of the training, the same for every attempt.
        settings: what it is, by name.
        first_step: where it goes on.
    """

    def __init__(
        self, names: tuple[Name, ...], work: Path, identity: str, settings: dict[str, Any], first_step: int
    ) -> None:
        check_trackers(names)
        self.all = [
            _Told(name, partial(_KINDS[name], work, identity, settings, first_step)) for name in names
        ]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Give each the figures of a step."""
        for tracker in self.all:
            tracker.log(step, values)

    def close(self) -> None:
        """End each; one that does not end in some seconds is left."""
        deadline = time.monotonic() + _CLOSING_SECONDS
        for tracker in self.all:
            tracker.end()
        for tracker in self.all:
            tracker.close(deadline)
