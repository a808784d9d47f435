"""tokenize: text to token ids, as Arrow shards, training and validation apart."""

from itertools import pairwise
from pathlib import Path

from model.errors import InputError
from model.tokenizer import TOKENIZER, end_of_text_id, load_tokenizer, tokenizer_sha256
from tasks.engine.stage import Artifact, Metrics, Parts, Shard, map_stage
from tasks.tables import read_table
from tasks.text.documents import DOCUMENTS
from tasks.text.selection import SELECTION, SIDES


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

    from model.tokens import write_tokens

    encoder = fastokens.Tokenizer.from_file(str(tokenizer.path / TOKENIZER))
    reference = load_tokenizer(tokenizer.path)
    end_of_text = end_of_text_id(reference)
    digest = tokenizer_sha256(tokenizer.path)
    table = read_table(documents.path / DOCUMENTS, ["id", "source", "text"])
    sides = np.array(
        read_table(selection.path / SELECTION, ["side"]).column("side").to_pylist(), dtype=object
    )
    metrics: Metrics = {}
    for side in SIDES:
        part = table.take(np.flatnonzero(sides == side))
        texts = part.column("text").to_pylist()
        encoded: list[np.ndarray] = []
        if texts:
            flat, offsets = encoder.encode_batch_flat(texts, split_special_tokens=True)
            ids, ends = np.frombuffer(flat, np.uint32), np.frombuffer(offsets, np.uint64).tolist()
            encoded = [ids[start:end] for start, end in pairwise(ends)]
        out.mkdir(parents=True, exist_ok=True)
        header = write_tokens(
            out / f"{side}.arrow",
            encoded,
            part.column("id").to_pylist(),
            part.column("source").to_pylist(),
            [len(text.encode()) for text in texts],
            tokenizer_sha256=digest,
            vocabulary_size=reference.get_vocab_size(),
            end_of_text_id=end_of_text,
        )
        metrics[side] = {"tokens": header.n_tokens, "documents": header.n_documents, "bytes": header.n_bytes}
        by_source: dict[str, int] = {}
        for source, document in zip(part.column("source").to_pylist(), encoded, strict=True):
            by_source[source] = by_source.get(source, 0) + len(document) + 1
        metrics[side]["tokens_by_source"] = by_source
    return metrics
