"""What text costs that is made to cost much: python benchmarks/hostile_text.py.

Each file goes through ingest, clean and train_tokenizer, beside ordinary prose of the same size. Prints a table in Markdown:
CPU seconds, peak memory, and what became of it.
"""

import gzip
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import InputError
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Artifact, Piece, Shard
from tasks.tables import write_table
from tasks.text.clean import CleanConfig, clean
from tasks.text.ingest import ingest
from tasks.text.pieces import list_pieces
from tasks.text.selection import SELECTION, SELECTION_SCHEMA, TRAIN
from tasks.text.sources import IngestConfig, Source
from tasks.text.split import selection_row
from tasks.tokens.train_tokenizer import TrainTokenizerConfig, train_tokenizer

PROSE = "The state of the Union depends on the care that its people take of what they have in common. "


def text(content: str, name: str = "a.txt") -> Callable[[Path], Any]:
    """Writes one file."""
    return lambda folder: (folder / name).write_text(content)


def _gzip_bomb(folder: Path) -> None:
    with gzip.open(folder / "a.jsonl.gz", "wb") as file:
        file.write(b'{"text": "good"}\n{"text": "')
        for _ in range(300):
            file.write(b"a" * 1_000_000)


def _parquet_bomb(folder: Path) -> None:
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["a" * 20_000_000]))
    pq.write_table(pa.table({"text": once}), folder / "a.parquet", compression="zstd")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "a.jsonl")
    (folder / "b.txt").write_text(PROSE)


CASES: dict[str, Callable[[Path], Any]] = {
    "prose, 1 MB": text(PROSE * 10_600),
    "a-b-a-b-, 1 MB": text("a-b-" * 250_000),
    "line feeds, 1 MB, in prose": text(PROSE + "\n" * 1_000_000 + PROSE),
    "=, 1 MB in one run": text(PROSE + "=" * 1_000_000 + PROSE),
    "letters, 1 MB in one run": text(PROSE + "abcdefgh" * 125_000 + PROSE),
    "one line of 300 MB in 0.3 MB of gzip": _gzip_bomb,
    "6 GB in one small Parquet file": _parquet_bomb,
    "JSON 100,000 deep": text("[" * 100_000 + '\n{"text": "good"}\n', "a.jsonl"),
    "a pipe": _pipe,
}


def measure(case: str, results: Any) -> None:
    """Read, clean and learn from one hostile folder; puts what it took and came to."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "in").mkdir()
        CASES[case](root / "in")
        before, outcome = time.process_time(), ""
        try:
            (root / "ingest").mkdir()
            config = IngestConfig(
                sources=(Source(path=str(root / "in")),), max_error_rate=1.0, max_document_bytes=10_000_000
            )
            (piece,) = list_pieces(config, SourceDigests()).each
            figures = ingest.fn(config, Piece(piece), out=root / "ingest")
            documents = root / "ingest" / "shards" / "00000"
            (root / "clean").mkdir()
            clean.fn(
                CleanConfig(repetition=None),
                documents=Shard(documents),
                out=root / "clean",
            )
            rows = pq.read_table(root / "clean" / "documents.parquet").to_pylist()
            selection = [selection_row(row["id"], row["text"], TRAIN) for row in rows]
            write_table(root / "selection" / SELECTION, selection, SELECTION_SCHEMA)
            artifacts = {name: Artifact(root, (root / name,)) for name in ("clean", "selection")}
            train_tokenizer.fn(
                TrainTokenizerConfig(vocabulary_size=500),
                documents=artifacts["clean"],
                selection=artifacts["selection"],
                out=root / "tokenizer",
            )
            outcome = f"{figures['documents']} read, {len(rows)} kept, errors {json.dumps(figures['errors'])}"
        except InputError as error:
            outcome = f"refused: {str(error)[:90]}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        results.put((time.process_time() - before, peak, outcome))


def main() -> int:
    """Each case in a process of its own; ends with the number of those over the limits."""
    over = 0
    print("| text | CPU seconds | peak MB | what became of it |\n|---|---|---|---|")
    for name in CASES:
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=measure, args=(name, results))
        process.start()
        seconds, peak, outcome = results.get(timeout=300)
        process.join()
        over += seconds > 60 or peak > 2000
        print(f"| {name} | {seconds:.1f} | {peak:.0f} | {outcome} |", flush=True)
    return over


if __name__ == "__main__":
    sys.exit(main())
