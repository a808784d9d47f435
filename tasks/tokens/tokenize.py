"""tokenize: text to token ids, as Arrow shards, training and validation apart."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from model.errors import InputError
from model.tokenizer import TOKENIZER, end_of_text_id, load_tokenizer, tokenizer_sha256
from tasks.engine.stage import Artifact, Metrics, Parts, Shard, map_stage
from tasks.tables import read_batches, read_table
from tasks.text.documents import DOCUMENTS
from tasks.text.selection import SELECTION, SIDES

if TYPE_CHECKING:
    import numpy as np


_MOST_CHARACTERS = 4_000_000
"""Of text that is encoded together."""


class _Side(NamedTuple):
    """The documents of a side: tokens, ids, sources, and bytes of text of each."""

    tokens: "list[np.ndarray]"
    ids: list[str]
    sources: list[str]
    byte_counts: list[int]


def _has_tokens(parts: Parts) -> Metrics:
    for side in SIDES:
        if not parts.metrics.get(side, {}).get("tokens"):
            raise InputError(f"no token is left for {side}: add text, or change the section split")
    return parts.metrics


@map_stage(
    libraries=("fastokens", "tokenizers", "pyarrow", "numpy", "xxhash"), role="tokenize", finish=_has_tokens
)
def tokenize(documents: Shard, selection: Shard, tokenizer: Artifact, out: Path) -> Metrics:
    """Write train.arrow and validation.arrow, each with its .documents.arrow (see `model.tokens`).

    Each document begins with end-of-text; text that spells a special token is encoded as text.
    """
    import fastokens
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from model.tokens import token_dtype, write_tokens

    encoder = fastokens.Tokenizer.from_file(str(tokenizer.path / TOKENIZER))
    reference = load_tokenizer(tokenizer.path)
    end_of_text = end_of_text_id(reference)
    digest = tokenizer_sha256(tokenizer.path)
    dtype = token_dtype(reference.get_vocab_size())
    chosen = read_table(selection.path / SELECTION, ["side"]).column("side").to_pylist()
    found = {side: _Side([], [], [], []) for side in SIDES}
    row = 0
    # Some documents at a time, so that memory holds their tokens and not their texts.
    for batch in read_batches(documents.path / DOCUMENTS, "text", _MOST_CHARACTERS):
        sides = np.array(chosen[row : row + len(batch)], dtype=object)
        row += len(batch)
        for side, own in found.items():
            part = batch.take(pa.array(np.flatnonzero(sides == side)))
            texts = part.column("text").to_pylist()
            if not texts:
                continue
            flat, offsets = encoder.encode_batch_flat(texts, split_special_tokens=True)
            ids, ends = (
                np.frombuffer(flat, np.uint32).astype(dtype),
                np.frombuffer(offsets, np.uint64).tolist(),
            )
            own.tokens.extend(ids[start:end] for start, end in pairwise(ends))
            own.ids.extend(part.column("id").to_pylist())
            own.sources.extend(part.column("source").to_pylist())
            own.byte_counts.extend(pc.binary_length(part.column("text")).to_pylist())
    metrics: Metrics = {}
    for side, own in found.items():
        out.mkdir(parents=True, exist_ok=True)
        header = write_tokens(
            out / f"{side}.arrow",
            own.tokens,
            own.ids,
            own.sources,
            own.byte_counts,
            tokenizer_sha256=digest,
            vocabulary_size=reference.get_vocab_size(),
            end_of_text_id=end_of_text,
        )
        metrics[side] = {"tokens": header.n_tokens, "documents": header.n_documents, "bytes": header.n_bytes}
        by_source: dict[str, int] = {}
        for source, document in zip(own.sources, own.tokens, strict=True):
            by_source[source] = by_source.get(source, 0) + len(document) + 1
        metrics[side]["tokens_by_source"] = by_source
    return metrics
