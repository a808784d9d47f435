"""minhash: the signature of every document."""

from pathlib import Path

from tasks.engine.stage import Metrics, Shard, map_stage
from tasks.tables import read_table, write_table
from tasks.text.documents import DOCUMENTS, document_digest, text_digest
from tasks.text.signatures import ROWS, SIGNATURES, SIGNED, SIGNED_SCHEMA, MinhashConfig


@map_stage(libraries=("rensa", "numpy", "xxhash", "pyarrow"))
def minhash(config: MinhashConfig, documents: Shard, out: Path) -> Metrics:
    """Write signatures.npy (hashes, uint32), rows.npy (of which rows they are) and signed.parquet (id, source, digests).

    A document shorter than one shingle has no signature: it is nobody's near-duplicate, but for texts equal to it.
    """
    import numpy as np
    import rensa

    from tasks.ngrams import WordHasher, ngram_hashes

    table = read_table(documents.path / DOCUMENTS)
    ids, texts = table.column("id").to_pylist(), table.column("text").to_pylist()
    hasher = WordHasher()
    shingles = [ngram_hashes(hasher(text), config.n_grams) for text in texts]
    rows = np.array([row for row, own in enumerate(shingles) if len(own)], np.uint32)
    n_hashes = config.buckets * config.hashes_per_bucket
    signatures = np.empty((len(rows), n_hashes), "<u4")
    if len(rows):
        flat = np.concatenate([shingles[row] for row in rows])
        offsets = np.concatenate(([0], np.cumsum([len(shingles[row]) for row in rows]))).astype(np.uint64)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, n_hashes, config.seed)
        signatures[:] = np.array(matrix.to_rows(), np.uint32)
    out.mkdir(parents=True, exist_ok=True)
    # Hash by hash, so that whoever needs a bucket reads that much and no more.
    np.save(out / SIGNATURES, np.ascontiguousarray(signatures.T))
    np.save(out / ROWS, rows.astype("<u4"))
    sources = table.column("source").to_pylist()
    signed = [
        {
            "id": identifier,
            "source": source,
            "digest": document_digest(identifier, text),
            "text_digest": text_digest(text),
        }
        for identifier, source, text in zip(ids, sources, texts, strict=True)
    ]
    write_table(out / SIGNED, signed, SIGNED_SCHEMA)
    return {"documents": len(ids), "signed": len(rows)}
