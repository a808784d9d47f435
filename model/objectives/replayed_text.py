"""New text with old text replayed: what keeps a model from forgetting while it learns a domain, or what is new."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from model.batches import Windows
from model.objectives.objective import Rows
from model.objectives.text import TextObjective, TextRows
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


class Mixture:
    """Two streams of windows in a fixed proportion: of any run of n windows, `share` x n, give or take one, are of the second.

    Like `Windows.batch` a pure function of (seed, step).
    """

    def __init__(self, first: Windows, second: Windows, share: float) -> None:
        self.first, self.second = first, second
        self.numerator = np.uint64(round(share * 2**32))

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def batch(self, step: int, windows_per_batch: int, seed: int, first: int, count: int) -> np.ndarray:
        """Windows `first` to `first + count` of the batch of `step`: token ids (count, T + 1), int64."""
        samples = step * windows_per_batch + first + np.arange(count + 1, dtype=np.uint64)
        before = (samples * self.numerator) >> np.uint64(32)
        is_second = np.diff(before).astype(bool)
        samples, before = samples[:-1], before[:-1]
        out = np.empty((count, self.first.context_length + 1), np.int64)
        out[is_second] = self.second.draw(before[is_second], seed)
        out[~is_second] = self.first.draw((samples - before)[~is_second], seed)
        return out


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
        if not self.replay_shards:
            return Windows(self._pieces(shards, new=False), context_length)
        replayed = [open_tokens(path, shards[0].header.tokenizer_sha256) for path in self.replay_shards]
        return Windows([shard.ids for shard in replayed], context_length)

    def _pieces(self, shards: Sequence[Tokens], *, new: bool) -> list[np.ndarray]:
        if not self.new_documents:
            return [shard.ids for shard in shards] if new else []
        ids = set(json.loads(self.new_documents.read_text()))
        return [piece for shard in shards for piece in select_documents(shard, ids, inside=new)]

    def open_rows(self, shards: Sequence[Tokens], context_length: int) -> Rows:
        """Windows of both streams."""
        new = self.new_windows(shards, context_length)
        if not self.replay_weight:
            return TextRows(new, context_length)
        return TextRows(
            Mixture(new, self.old_windows(shards, context_length), self.replay_weight), context_length
        )
