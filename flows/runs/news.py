"""What is new in the sources since the champion was made: whether it is worth a training."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from flows.recipe.recipe import Recipe, RetrainConfig
from flows.runs.record import Run
from tasks.engine.keys import canonical
from tasks.engine.sources import SourceDigests
from tasks.engine.store import Store
from tasks.tables import read_json_lines
from tasks.text.document_shards import PIECES
from tasks.text.documents import text_digest
from tasks.text.new_documents import text_digests_of
from tasks.text.pieces import list_pieces
from tasks.text.readers import unread_texts
from tasks.text.sorted_arrays import are_among


@dataclass(frozen=True)
class News:
    """New text, and the age of the champion that has not read it."""

    documents: int
    bytes: int
    age_days: float

    def __str__(self) -> str:
        return f"{self.documents:,} new documents with {self.bytes:,} bytes; the champion is {self.age_days:.1f} days old"

    def is_enough(self, config: RetrainConfig) -> bool:
        """Whether it is worth a training."""
        if not self.documents:
            return False
        too_old = config.max_age_days is not None and self.age_days >= config.max_age_days
        return too_old or self.documents >= config.min_new_documents or self.bytes >= config.min_new_bytes


def find_news(recipe: Recipe, champion: Run, store: Store, sources: SourceDigests) -> News:
    """Count the documents whose text the champion's ingest did not have. Reads changed and added files only."""
    stored = champion.stored(store, "ingest")
    age = datetime.now(UTC) - datetime.fromisoformat(champion.record["created"])
    before = read_json_lines(stored.out / PIECES)
    now = canonical(list_pieces(recipe.ingest, sources).each)
    n_documents = n_bytes = 0
    if now != before:
        known, found = text_digests_of(stored.shard_paths), set()
        for text in unread_texts(recipe.ingest, before, now):
            digest = text_digest(text)
            if digest not in found and not are_among([digest], known)[0]:
                found.add(digest)
                n_documents, n_bytes = n_documents + 1, n_bytes + len(text.encode())
    return News(n_documents, n_bytes, age / timedelta(days=1))
