"""Near-duplicates beside datatrove's MinHash with its default words: python -m benchmarks.duplicates FILE.jsonl.gz ...

Of each file 75 documents of 4,000 characters are planted again, with a share of their words (in scripts without spaces,
characters) replaced by others of the file; a folder is taken as source code, a file a document. Prints how many of them are
found, ours and stock, and near-misses that are taken for duplicates: pairs of other documents. Needs `pip install spacy`.
"""

import argparse
import gzip
import json
import random
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig as StockConfig
from datatrove.pipeline.dedup.minhash import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig

from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Artifact, Piece, Shard
from tasks.tables import write_table
from tasks.text.documents import DOCUMENTS, DOCUMENTS_SCHEMA
from tasks.text.find_copies import find_copies
from tasks.text.find_duplicates import find_duplicates, list_buckets
from tasks.text.minhash import minhash
from tasks.text.signatures import COPIES, NEAR, MinhashConfig

_PLANTED, _CHARACTERS, _NOISE = 75, 4_000, (0.0, 0.005, 0.02, 0.05, 0.1)


def documents_of(path: Path) -> list[str]:
    """Documents of a file of rows, or of a folder of source code."""
    if path.is_dir():
        texts = [file.read_text("utf-8", "replace") for file in sorted(path.rglob("*.py"))]
    else:
        with gzip.open(path, "rt", encoding="utf-8") as rows:
            texts = [json.loads(row)["text"] for row in rows]
    long = [text for text in texts if len(text) >= _CHARACTERS]
    return [text[:_CHARACTERS] for text in long[:: max(1, len(long) // _PLANTED)]][:_PLANTED]


def with_noise(text: str, share: float, others: list[str], seed: int) -> str:
    """The text with some of its words replaced by others."""
    chooser = random.Random(seed)
    return " ".join(chooser.choice(others) if chooser.random() < share else word for word in text.split(" "))


def find_pairs(folder: Path, shards: tuple[Path, ...]) -> tuple[Artifact, Artifact]:
    """Results of find_copies and of find_duplicates on these signed shards, below an empty folder."""
    signed, parts = Artifact(folder, shards), []
    copies = folder / "copies"
    copies.mkdir(parents=True)
    find_copies.fn(signatures=signed, out=copies)
    for number, piece in enumerate(list_buckets(MinhashConfig(), SourceDigests()).each):
        parts.append(folder / str(number))
        parts[-1].mkdir()
        more = {"copies": Artifact(copies), "piece": Piece(piece), "out": parts[-1]}
        find_duplicates.fn(MinhashConfig(), signatures=signed, **more)
    return Artifact(copies), Artifact(folder, tuple(parts))


def near_pairs(copies: Artifact, pairs: Artifact) -> set[tuple[int, int]]:
    """Pairs of documents with equal texts or an equal bucket, the smaller number first."""
    found = [np.load(copies.path / COPIES), *(np.load(part / NEAR) for part in pairs.shards)]
    return {(min(pair), max(pair)) for part in found for pair in part.tolist()}


def ours(folder: Path, texts: list[str], profile: str) -> set[tuple[int, int]]:
    """Pairs of near-duplicates by our stages."""
    columns = {"source": "s", "profile": profile, "metadata": "{}"}
    rows = [{"id": f"s/{i}", "text": text, **columns} for i, text in enumerate(texts)]
    write_table(folder / DOCUMENTS, rows, DOCUMENTS_SCHEMA)
    minhash.fn(MinhashConfig(), documents=Shard(folder), out=folder)
    return near_pairs(*find_pairs(folder / "pairs", (folder,)))


def stock(folder: Path, texts: list[str], words: Any) -> set[tuple[int, int]]:
    """Pairs in one cluster by datatrove's steps, in the shape of ours."""
    shape = MinhashConfig()
    config = StockConfig(
        n_grams=shape.n_grams,
        num_buckets=shape.buckets,
        hashes_per_bucket=shape.hashes_per_bucket,
        hash_config=HashConfig(precision=32),
    )
    names = {name: str(folder / name) for name in ("signatures", "buckets", "clusters")}
    documents = (Document(text=text, id=str(i)) for i, text in enumerate(texts))
    MinhashDedupSignature(names["signatures"], config=config, language=words).run(documents, 0, 1)
    for bucket in range(shape.buckets):
        MinhashDedupBuckets(names["signatures"], names["buckets"], config=config).run(
            None, bucket, shape.buckets
        )
    MinhashDedupCluster(names["buckets"], names["clusters"], config=config, save_cluster_id=True).run(
        None, 0, 1
    )
    clusters: dict[int, list[int]] = {}
    for path in (folder / "clusters").glob("*.clusters"):
        for row, cluster in struct.iter_unpack("<2I", path.read_bytes()):
            clusters.setdefault(cluster, []).append(row)
    return {(a, b) for rows in clusters.values() for a in rows for b in rows if a < b}


def main() -> None:
    """Print a row for each text and side."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("paths", nargs="+", type=Path)
    given = options.parse_args()
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    words = load_word_tokenizer("en")
    print(f"| text | by | {' | '.join(f'{noise:.1%}' for noise in _NOISE)} | near-misses |")
    print(f"|{'---|' * (3 + len(_NOISE))}")
    for path in given.paths:
        texts = documents_of(path)
        others = " ".join(texts).split(" ")
        found: dict[str, list[int]] = {"ours": [], "datatrove": []}
        misses = dict.fromkeys(found, 0)
        for noise in _NOISE:
            both = texts + [with_noise(text, noise, others, seed) for seed, text in enumerate(texts)]
            wanted = {(i, i + len(texts)) for i in range(len(texts))}
            for side in found:
                with tempfile.TemporaryDirectory() as name:
                    profile = "code" if path.is_dir() else "plain"
                    pairs = (
                        ours(Path(name), both, profile) if side == "ours" else stock(Path(name), both, words)
                    )
                found[side].append(len(pairs & wanted))
                misses[side] += sum(b - a != len(texts) for a, b in pairs)
        for side, counts in found.items():
            row = " | ".join(map(str, counts))
            print(
                f"| {path.name.split('.')[0]} ({len(texts)}) | {side} | {row} | {misses[side]} |", flush=True
            )


if __name__ == "__main__":
    main()
