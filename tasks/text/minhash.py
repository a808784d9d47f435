"""minhash: the signature of every document."""

from pathlib import Path
from typing import Any

from tasks.engine.stage import Metrics, Shard, map_stage
from tasks.tables import read_table, write_table
from tasks.text.documents import DOCUMENTS, document_digest, text_digest
from tasks.text.signatures import ROWS, SIGNATURES, SIGNED, SIGNED_SCHEMA, MinhashConfig


def _signatures(config: MinhashConfig, texts: list[str], marks: bool) -> tuple[Any, Any]:
    """Which of the texts have a signature, in order, and these: uint32 (signed, hashes)."""
    import numpy as np
    import rensa

    from tasks.ngrams import hash_words, ngrams_of

    n_hashes = config.buckets * config.hashes_per_bucket
    counts, parts = [np.empty(0, np.int64)], [np.empty((0, n_hashes), np.uint32)]
    for words, of_words in hash_words(texts, marks=marks):
        shingles, offsets = ngrams_of(words, of_words, config.n_grams)
        counts.append(np.diff(offsets))
        # Texts without a shingle take no room, so leaving their offsets out changes none of the others.
        of_signed = np.unique(offsets).astype(np.uint64)
        if len(of_signed) > 1:
            matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
                shingles, of_signed, n_hashes, config.seed
            )
            parts.append(np.array(matrix.to_rows(), np.uint32))
    return np.flatnonzero(np.concatenate(counts)), np.concatenate(parts)


@map_stage(libraries=("rensa", "numpy", "pyarrow"))
def minhash(config: MinhashConfig, documents: Shard, out: Path) -> Metrics:
    """Write signatures.npy (hashes, uint32), rows.npy (of which rows they are) and signed.parquet (id, source, digests).

    A document shorter than one shingle has no signature: it is nobody's near-duplicate, but for texts equal to it. In
    source code marks of punctuation are words.
    """
    import numpy as np

    table = read_table(documents.path / DOCUMENTS)
    ids, texts = table.column("id").to_pylist(), table.column("text").to_pylist()
    are_code = np.array([profile == "code" for profile in table.column("profile").to_pylist()], bool)
    parts = []
    for marks in (False, True):
        own = np.flatnonzero(are_code == marks)
        signed, matrix = _signatures(config, [texts[row] for row in own], marks)
        parts.append((own[signed], matrix))
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    rows, signatures = (np.concatenate(part)[order] for part in zip(*parts, strict=True))
    out.mkdir(parents=True, exist_ok=True)
    # Hash by hash, so that whoever needs a bucket reads that much and no more.
    np.save(out / SIGNATURES, np.ascontiguousarray(signatures.T.astype("<u4")))
    np.save(out / ROWS, rows.astype("<u4"))
    sources = table.column("source").to_pylist()
    described = [
        {
            "id": identifier,
            "source": source,
            "digest": document_digest(identifier, text),
            "text_digest": text_digest(text),
            "is_code": is_code,
        }
        for identifier, source, text, is_code in zip(ids, sources, texts, are_code.tolist(), strict=True)
    ]
    write_table(out / SIGNED, described, SIGNED_SCHEMA)
    return {"documents": len(ids), "signed": len(rows)}
