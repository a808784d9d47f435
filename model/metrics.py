"""What a training tells while it runs: lines of JSON, and words for a person."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from model.files import write_whole


class JsonLines:
    """A file with a line of JSON for each step of which there is something to say.

    Args:
        first_step: where the training goes on; lines of steps that are done again are dropped first.
    """

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
        write_whole(path, "".join(kept), durable=True)
        self.file = path.open("a", buffering=1)

    def write(self, values: dict[str, Any]) -> None:
        """Add the line of a step; what is no finite number is null."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self.file.write(json.dumps(finite, allow_nan=False) + "\n")

    def sync(self) -> None:
        """Have what was written on the disk."""
        os.fsync(self.file.fileno())


@dataclass
class Taken:
    """A step that was taken, and what it measured, on its way from the device.

    Attributes:
        figures: mean loss, gradient norm and whether it is a spike, on the host once `arrive` returns.
        event: of the copy to the host; None if they were there at once.
        measured: what was measured after it, on the host already.
    """

    step: int
    learning_rate: float
    figures: Tensor
    event: Any
    measured: dict[str, float] = field(default_factory=dict)

    def arrive(self) -> Tensor:
        """The figures, once they are on the host."""
        if self.event is not None:
            self.event.synchronize()
        return self.figures


def told(record: dict[str, Any], state: dict[str, Any]) -> str:
    """Loss, held-out figure and speed, for a person who watches."""
    held_out = state["validation_bits_per_byte"]
    measured = f"held out {held_out:.3f} bits/byte, " if held_out else ""
    speed = record["tokens"] / state["step_seconds"]
    return f"loss {record['loss']:.2f}, {measured}{speed:,.0f} tokens/s"
