"""Reading text as the stage ingest does, without a store."""

from pathlib import Path
from typing import Any

from tasks.engine.call import sum_metrics
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Parts, Piece
from tasks.text.document_shards import finish_reading
from tasks.text.ingest import ingest
from tasks.text.pieces import list_pieces
from tasks.text.sources import IngestConfig


def read_text(config: IngestConfig, out: Path) -> tuple[list[Path], dict[str, Any]]:
    """The shards, in order, and the figures; lists of what was left out are in out/figures/."""
    pieces = list_pieces(config, SourceDigests()).each
    folders = tuple(out / "pieces" / f"{position:05d}" for position in range(len(pieces)))
    figures = []
    for folder, piece in zip(folders, pieces, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        figures.append(ingest.fn(config, Piece(piece), out=folder))
    parts = Parts(folders, sum_metrics(figures), tuple(pieces), out)
    metrics = finish_reading(config, parts)
    return [shard for folder in folders for shard in sorted((folder / "shards").glob("*"))], metrics
