"""New text with old text replayed: what keeps a model from forgetting while it learns a domain, or what is new."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from model.batches import Windows
from model.mixture import Mixture, Phase
from model.objectives.objective import Rows
from model.objectives.text import TextObjective
from model.tokens import Tokens, open_tokens


def select_documents(tokens: Tokens, ids: set[str], *, inside: bool) -> list[np.ndarray]:
    """Token ids of the documents whose id is in `ids`, or is not: views, one for each run of neighbours."""
    names, ends = tokens.documents.column("id").to_pylist(), tokens.documents.column("end").to_pylist()
    runs: list[list[int]] = []
    start = 0
    for name, end in zip(names, ends, strict=True):
        if (name in ids) == inside:
            if runs and runs[-1][1] == start:
                runs[-1][1] = end
            else:
                runs.append([start, end])
        start = end
    return [tokens.ids[start:end] for start, end in runs]


class ReplayedTextObjective(TextObjective):
    """Predict the next token of new text and, in a fixed share of the windows, of old text."""

    new_documents: Path | None = Field(
        None,
        description="File of JSON with the ids of the new documents of the shards; all of them if empty.",
    )
    replay_shards: tuple[Path, ...] = Field(
        (), description="Token files of old text; the documents of the shards that are not new if empty."
    )
    replay_weight: float = Field(ge=0, lt=1, description="Share of the windows that come from old text.")

    def new_windows(self, shards: Sequence[Tokens], context_length: int) -> Windows:
        """New text as one stream of windows."""
        return Windows(self._pieces(shards, new=True), context_length)

    def old_windows(self, shards: Sequence[Tokens], context_length: int) -> Windows:
        """Old text as one stream of windows."""
        return self._old_windows(shards, self._replayed(shards), context_length)

    def _old_windows(
        self, shards: Sequence[Tokens], replayed: Sequence[Tokens], context_length: int
    ) -> Windows:
        old = [shard.ids for shard in replayed] or self._pieces(shards, new=False)
        return Windows(old, context_length)

    def _replayed(self, shards: Sequence[Tokens]) -> list[Tokens]:
        return [open_tokens(path, shards[0].header.tokenizer_sha256) for path in self.replay_shards]

    def _pieces(self, shards: Sequence[Tokens], *, new: bool) -> list[np.ndarray]:
        if not self.new_documents:
            return [shard.ids for shard in shards] if new else []
        ids = set(json.loads(self.new_documents.read_text()))
        return [piece for shard in shards for piece in select_documents(shard, ids, inside=new)]

    def open_rows(self, shards: Sequence[Tokens], context_length: int) -> Rows:
        """Windows of both streams."""
        new = self.new_windows(shards, context_length)
        if not self.replay_weight:
            return self.text_rows(shards, new, context_length)
        replayed = self._replayed(shards)
        shares = Phase(0, (self.replay_weight, 1 - self.replay_weight))
        mixture = Mixture([self._old_windows(shards, replayed, context_length), new], [shares])
        return self.text_rows([*shards, *replayed], mixture, context_length)
