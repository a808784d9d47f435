"""Stages that write ten bytes."""

import os
import time
from pathlib import Path

from pydantic import Field

from model.base_config import Config
from model.errors import InputError
from tasks.engine.stage import Artifact, Metrics, Parts, Shard, map_stage, stage
from toy import arithmetic


class DoubleConfig(Config):
    """How they grow."""

    factor: int = Field(2, description="Factor.")


class TotalConfig(Config):
    """How they are added."""

    modulus: int = Field(1000, description="The sum is taken modulo this.")


class LabelConfig(Config):
    """How they are named."""

    word: str = Field("is", description="A word.")


def delay() -> None:
    """Wait, and note that work was done: for tests that kill or count."""
    if "TOY_LOG" in os.environ:
        with open(os.environ["TOY_LOG"], "a") as log:
            log.write(f"built by {os.getpid()}\n")
    time.sleep(float(os.environ.get("TOY_DELAY", "0")))


class Odd(Exception):
    """An error that does not find its way back from another process."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} {why}")


def _once_built(n_shards: int) -> None:
    """Wait until so many are noted."""
    while n_shards and Path(os.environ["TOY_LOG"]).read_text().count("built") < n_shards:
        time.sleep(0.05)


def _positive(config: DoubleConfig, parts: Parts) -> Metrics:
    if parts.metrics["sum"] < 0:
        raise InputError("the sum is negative: add positive numbers")
    return parts.metrics


@map_stage(libraries=("toylib",), finish=_positive)
def double(config: DoubleConfig, numbers: Shard, out: Path) -> Metrics:
    """Each number times the factor. `3 once 9` is 3, which waits until 9 others are noted."""
    text = (numbers.path / "number").read_text()
    text, _, others = text.partition(" once ")
    _once_built(int(others or 0))
    delay()
    if text == "crash":
        raise ZeroDivisionError("a number that cannot be")
    if text == "odd":
        raise Odd("a number", "that is odd")
    product = arithmetic.multiply(int(text), config.factor)
    (out / "number").write_text(f"{product:010d}")
    (out / "figures").mkdir()
    (out / "figures" / "time").write_text(str(time.time()))
    return {"count": 1, "sum": product}


@stage()
def total(config: TotalConfig, doubled: Artifact, out: Path) -> Metrics:
    """The sum of all."""
    delay()
    value = sum(int((shard / "number").read_text()) for shard in doubled.shards) % config.modulus
    (out / "total").write_text(str(value))
    return {"total": value}


@map_stage()
def label(config: LabelConfig, doubled: Shard, total: Artifact, out: Path) -> Metrics:
    """Each number with the sum."""
    delay()
    text = f"{(doubled.path / 'number').read_text()} {config.word} {(total.path / 'total').read_text()}"
    (out / "label").write_text(text)
    return {}
