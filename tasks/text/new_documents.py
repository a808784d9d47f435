"""Which texts an earlier run had; and train.json and validation.json of find_new: ids of the documents that it had not."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks.tables import read_table
from tasks.text.documents import TEXT_DIGESTS

NEW = "{side}.json"


def text_digests_of(shards: Iterable[Path]) -> Any:
    """Digests of all texts that shards of documents hold, each once: sorted, uint64."""
    import numpy as np

    parts = [read_table(shard / TEXT_DIGESTS).column("digest").to_numpy() for shard in shards]
    return np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))
