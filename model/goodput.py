"""How fast a training is: what a step computes in a second, and goodput over all attempts."""

import json
import time
from pathlib import Path

from model.budget import accelerator_named
from model.files import read_json, write_whole

ATTEMPTS = "attempts.json"
"""Below the working folder: when each attempt began, and when it was last seen, in seconds since 1970."""


class Attempts:
    """The attempts of one training; the first rank keeps them.

    Args:
        work: working folder.
        alive: a file that an attempt writes to as long as it lives: one that was killed lived until then.
    """

    def __init__(self, work: Path, alive: Path) -> None:
        self.path = work / ATTEMPTS
        former: list[list[float]] = read_json(self.path) or []
        if former and alive.exists():
            former[-1][1] = max(former[-1][1], alive.stat().st_mtime)
        self.began = time.time()
        self.former_seconds = sum(max(0.0, end - begin) for begin, end in former)
        work.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps([*former, [self.began, self.began]]))

    def goodput(self, useful_seconds: float) -> float:
        """Seconds of steps that are in the weights as a share of those that processes ran.

        What is lost: starting, measuring, saving, and steps that were taken twice because a process was killed.
        """
        ran = self.former_seconds + time.time() - self.began
        return useful_seconds / ran if ran > 0 else 0.0


def speed(tokens: int, seconds: float, flops_per_token: float, device: str, ranks: int) -> dict[str, float]:
    """Tokens and FLOPs a second, of all ranks; and of devices that are known, the share of their bfloat16 peak (MFU)."""
    tokens_per_second = tokens / seconds if seconds > 0 else 0.0
    figures = {
        "tokens_per_second": round(tokens_per_second, 1),
        "flops_per_second": round(tokens_per_second * flops_per_token),
    }
    kind = accelerator_named(device)
    return figures | ({"mfu": round(figures["flops_per_second"] / (kind.peak * ranks), 4)} if kind else {})
