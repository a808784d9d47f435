"""A map stage of nothing, for measuring what a shard costs beside its work; see scale.py."""

from pathlib import Path
from typing import Any

from pydantic import Field

from model.base_config import Config
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Metrics, Piece, Pieces, Shard, map_stage


class CountConfig(Config):
    """How many."""

    shards: int = Field(description="Shards of nothing.")


def _numbers(config: Any, digests: SourceDigests) -> Pieces:
    return Pieces([{"number": number} for number in range(config.shards)], {})


@map_stage(pieces=_numbers, whole_fields=("shards",))
def numbers(config: CountConfig, piece: Piece, out: Path) -> Metrics:
    """Eight bytes."""
    (out / "number").write_text(f"{piece.values['number']:08d}")
    return {"count": 1}


@map_stage()
def nothing(numbers: Shard, out: Path) -> Metrics:
    """The same eight bytes."""
    (out / "number").write_bytes((numbers.path / "number").read_bytes())
    return {"count": 1}
