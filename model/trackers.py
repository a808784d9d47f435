"""Where the figures of a training go beside its own file, if that is asked for: TensorBoard, Weights & Biases, MLflow.

Each is its own library, installed with the extra `trackers` and imported when it is named. What a service needs to know, such as
WANDB_API_KEY or MLFLOW_TRACKING_URI, it reads from the environment.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from model.errors import InputError
from model.files import read_json, write_whole

Name = Literal["tensorboard", "wandb", "mlflow"]
TENSORBOARD = "tensorboard"
"""Below the working folder: what `tensorboard --logdir` shows."""
_PROJECT, _MLFLOW_RUN = "scratchlm", "mlflow.json"


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


class Trackers:
    """All that were asked for. A tracker that fails costs no training: it is left out from then on, and the log says why.

    Args:
        identity: of the training, the same for every attempt.
        settings: what it is, by name.
        first_step: where it goes on.
    """

    def __init__(
        self, names: tuple[Name, ...], work: Path, identity: str, settings: dict[str, Any], first_step: int
    ) -> None:
        check_trackers(names)
        self.open: dict[str, Tracker] = {}

        def begin(name: str) -> None:
            self.open[name] = _KINDS[name](work, identity, settings, first_step)

        for name in names:
            self._try(name, partial(begin, name))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Give each the figures of a step."""
        for name, tracker in list(self.open.items()):
            self._try(name, partial(tracker.log, step, values))

    def close(self) -> None:
        """End each."""
        for name, tracker in list(self.open.items()):
            self._try(name, tracker.close)

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self.open.pop(name, None)
            print(
                f"{name} gets no more figures, the training goes on: {type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )
