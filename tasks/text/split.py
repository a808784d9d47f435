"""split: joins all verdicts into the one selection that later stages read.

A map, since `deduplicate` has decided what documents of different shards have to do with each other.
"""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from model.base_config import Config
from model.errors import InputError
from tasks.engine.stage import Metrics, Parts, Shard, map_stage
from tasks.tables import read_table, write_table
from tasks.text.documents import DOCUMENTS, text_digest
from tasks.text.groups import GROUPS, LISTED, draw
from tasks.text.selection import DROPPED, SELECTION, SELECTION_SCHEMA, TRAIN, VALIDATION
from tasks.text.verdicts import VERDICTS


class SplitConfig(Config):
    """Which documents are held out: a share by hash of the text, a list of ids, or a source; exactly one of them."""

    validation_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the documents that is held out, by a hash of the text; 0.05 if nothing is set.",
    )
    validation_ids: tuple[str, ...] = Field(
        (), description="Ids of the documents that are held out, such as text/a.txt."
    )
    validation_source: str | None = Field(None, description="Name of the source that is held out as a whole.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the hash for validation_fraction.")

    @field_validator("validation_ids")
    @classmethod
    def _in_one_order(cls, identifiers: tuple[str, ...]) -> tuple[str, ...]:
        # Which they are matters, and not in which order they are written down.
        return tuple(sorted(identifiers))

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [
            name
            for name in ("validation_fraction", "validation_ids", "validation_source")
            if getattr(self, name) not in (None, ())
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: choose one")
        if len(set(self.validation_ids)) != len(self.validation_ids):
            twice = next(name for name in self.validation_ids if self.validation_ids.count(name) > 1)
            raise ValueError(f"validation_ids names {twice!r} twice: name it once")
        return self

    def side(self, draw: int, held: str) -> str:
        """Side of a document that nothing drops and no list names; it depends on its group alone, see `tasks.text.groups`.

        So none changes its side when other text comes, but for one that turns out to be alike to held-out text.
        """
        if self.validation_ids or self.validation_source:
            return TRAIN
        fraction = self.validation_fraction if self.validation_fraction is not None else 0.05
        return held or (VALIDATION if draw < fraction * 2**64 else TRAIN)


def _both_sides_have_text(config: SplitConfig, parts: Parts) -> Metrics:
    """The figures of all shards.

    Raises:
        InputError: if a side has no text, or the recipe names a document that is not there.
    """
    metrics = parts.metrics
    missing = [
        identifier for identifier in config.validation_ids if identifier not in metrics.get("listed", {})
    ]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(config.validation_ids)} split.validation_ids name no document that cleaning kept "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): correct the ids (`scratchlm why latest ID` tells the fate of one)"
        )
    for side, mend in (
        (TRAIN, "hold out less"),
        (VALIDATION, "hold out more: raise split.validation_fraction"),
    ):
        if not metrics.get(side, {}).get("documents"):
            raise InputError(
                f"no document is left for {side} (train {metrics.get(TRAIN, {}).get('documents', 0)}, validation "
                f"{metrics.get(VALIDATION, {}).get('documents', 0)}, dropped {metrics.get(DROPPED, {})}): {mend}, or add text"
            )
    return metrics


def selection_row(identifier: str, text: str, side: str, reason: str | None = None) -> dict[str, Any]:
    """What becomes of one document, as a row of selection.parquet."""
    decision = {"id": identifier, "side": side, "reason": reason}
    return {**decision, "text_digest": text_digest(text), "bytes": len(text.encode())}


@map_stage(libraries=("pyarrow",), finish=_both_sides_have_text)
def split(
    config: SplitConfig, documents: Shard, duplicates: Shard, contaminated: Shard, out: Path
) -> Metrics:
    """Write selection.parquet: id, side (train, validation or dropped), reason, digest and size of the text, row by row.

    Documents that the recipe lists as validation are dropped by no verdict, and those that are alike to one of
    them are trained on by none.
    """
    table = read_table(documents.path / DOCUMENTS, ["id", "source", "text"])
    verdicts = [read_table(shard.path / VERDICTS).to_pylist() for shard in (duplicates, contaminated)]
    rows = []
    metrics: Metrics = {
        "listed": {},
        TRAIN: {"documents": 0, "bytes": 0},
        VALIDATION: {"documents": 0, "bytes": 0},
        DROPPED: {},
    }
    groups = read_table(duplicates.path / GROUPS).to_pylist() if (duplicates.path / GROUPS).exists() else None
    listed = frozenset(config.validation_ids)
    for row, document in enumerate(table.to_pylist()):
        identifier, source, text = document["id"], document["source"], document["text"]
        group: dict[str, Any] = (
            groups[row] if groups else {"draw": draw(config.seed, text_digest(text)), "held": ""}
        )
        reason = None
        against = next((verdict for column in verdicts if not (verdict := column[row])["kept"]), None)
        if identifier in listed or source == config.validation_source:
            side = VALIDATION
            metrics["listed"] |= {identifier: 1} if identifier in listed else {}
        elif against or group["held"] == LISTED:
            side, reason = DROPPED, against["reason"] if against else "near held-out text"
            metrics[DROPPED][reason] = metrics[DROPPED].get(reason, 0) + 1
        else:
            side = config.side(group["draw"], group["held"])
        if side != DROPPED:
            metrics[side]["documents"] += 1
            metrics[side]["bytes"] += len(text.encode())
        rows.append(selection_row(identifier, text, side, reason))
    write_table(out / SELECTION, rows, SELECTION_SCHEMA)
    return metrics
