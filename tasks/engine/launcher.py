"""What runs the ranks: the protocol, and a process of this computer."""

import subprocess
from typing import Protocol

from tasks.engine import process
from tasks.engine.clusters import CutOff


class Launcher(Protocol):
    """What runs the ranks, somewhere."""

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""

    def stop(self, seconds: float) -> None:
        """End it: politely, and after some seconds not."""

    def told(self) -> str:
        """What there is to say of it while no rank trains."""

    def lost(self) -> tuple[str, str] | None:
        """The computer that was lost without a word, and what to say of it; None if none was."""

    def is_paused(self) -> bool:
        """Whether it is made to wait, and does nothing meanwhile."""

    def cut_off(self) -> CutOff | None:
        """Why it was ended from outside, and not because of anything in it; None if it was not."""


def rank_environment(device: str) -> dict[str, str]:
    """Variables with which ranks run.

    On a CPU the C library gives large blocks back to the system and asks for them again in every step, unless it is told not to:
    a step takes 10 to 15% longer, for 3 to 9% less memory (`benchmarks/training.py`).
    """
    keep_memory = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)} if device == "cpu" else {}
    return {"DS_ACCELERATOR": device, **keep_memory}


class HereLauncher:
    """A process of this computer."""

    def __init__(self, arguments: list[str], device: str) -> None:
        self.child = subprocess.Popen(arguments, env=process.child_environment(rank_environment(device)))

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""
        return self.child.poll()

    def stop(self, seconds: float) -> None:
        """End it: politely, and after some seconds not."""
        process.stop(self.child, seconds)

    def told(self) -> str:
        """Nothing."""
        return ""

    def lost(self) -> tuple[str, str] | None:
        """None: a process that ends is seen."""
        return None

    def is_paused(self) -> bool:
        """False: it is never made to wait."""
        return False

    def cut_off(self) -> CutOff | None:
        """None: it has all the time it needs."""
        return None
