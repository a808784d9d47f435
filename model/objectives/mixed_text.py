"""Text of several sources, each with a share of the training of its own."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from model.base_config import Config
from model.batches import Windows
from model.mixture import Mixture, Phase
from model.objectives.objective import Rows
from model.objectives.text import TextObjective
from model.tokens import Tokens


class SharesFrom(Config):
    """Shares that hold from a window of the training on."""

    first_window: int = Field(ge=0, description="Number of its first window.")
    shares: dict[str, float] = Field(description="Share of the windows, by source.")


def tokens_of_source(shards: Sequence[Tokens], source: str) -> list[np.ndarray]:
    """Token ids of the documents of a source: views, one for each run of neighbours in a shard."""
    pieces = []
    for shard in shards:
        ends = shard.documents.column("end").to_numpy().astype(np.int64)
        own = np.array(shard.documents.column("source").to_pylist(), object) == source
        # A run begins where the document before is of another source, and ends where the next one is.
        edges = np.flatnonzero(np.diff(np.concatenate(([False], own, [False]))))
        starts = np.concatenate(([0], ends))
        pieces += [shard.ids[starts[a] : starts[b]] for a, b in zip(edges[0::2], edges[1::2], strict=True)]
    return pieces


class MixedTextObjective(TextObjective):
    """Predict the next token of text from several sources."""

    phases: tuple[SharesFrom, ...] = Field(min_length=1, description="Shares, from the first window on.")

    def open_rows(self, shards: Sequence[Tokens], context_length: int) -> Rows:
        """The windows of each source as a stream of its own, in their shares."""
        sources = sorted({name for phase in self.phases for name in phase.shares})
        streams = [Windows(tokens_of_source(shards, source), context_length) for source in sources]
        phases = [
            Phase(phase.first_window, tuple(phase.shares.get(source, 0.0) for source in sources))
            for phase in self.phases
        ]
        return self.text_rows(shards, Mixture(streams, phases), context_length)
