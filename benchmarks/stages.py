"""Speed and memory of each stage on one shard of text: python benchmarks/stages.py FILE.jsonl.gz --megabytes 64.

Each stage runs alone in a process of its own, on a shard of so many MB that is cut from the texts of the file. Prints a table
in Markdown: MB of text for each CPU second, peak memory, what it reads and writes, and in how many files; the encoder alone stands
beside tokenize.
"""

import argparse
import gzip
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.benchmarks.index_benchmarks import IndexBenchmarksConfig, index_benchmarks
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Artifact, Piece, Shard
from tasks.tables import read_column, write_table
from tasks.text.clean import CleanConfig, clean
from tasks.text.decontaminate import decontaminate
from tasks.text.documents import DOCUMENTS
from tasks.text.ingest import ingest
from tasks.text.minhash import minhash
from tasks.text.pieces import list_pieces
from tasks.text.selection import SELECTION, SELECTION_SCHEMA, TRAIN
from tasks.text.signatures import MinhashConfig
from tasks.text.sources import IngestConfig, Source
from tasks.text.split import selection_row
from tasks.tokens.tokenize import tokenize
from tasks.tokens.train_tokenizer import TrainTokenizerConfig, train_tokenizer


def _measured(function: Callable[[], Any], told: Any) -> None:
    started = time.process_time()
    function()
    told.put((time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def _size(*folders: Path) -> tuple[float, int]:
    """MB in folders, and the number of their files."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) / 1e6, len(files)


def alone(
    name: str | None,
    megabytes: float,
    function: Callable[[], Any],
    reads: tuple[Path, ...] = (),
    writes: tuple[Path, ...] = (),
) -> float:
    """Run a function in a process of its own, which inherits little, and print a row if it has a name; returns its CPU seconds."""
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    process = context.Process(target=_measured, args=(function, told))
    process.start()
    seconds, peak = told.get()
    process.join()
    if name:
        (read, _), (written, files) = _size(*reads), _size(*writes)
        speed = f"{megabytes / seconds:.1f} | {peak:,.0f}"
        print(f"| {name} | {speed} | {read:,.1f} | {written:,.1f} | {files} |", flush=True)
    return seconds


def write_source(path: Path, source: Path, megabytes: float) -> None:
    """Rows of text of a file, again and again, until there are so many MB."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    total, number = 0, 0
    with path.open("w") as out:
        while total < megabytes * 1e6:
            text = f"{number} {texts[number % len(texts)]}"
            out.write(json.dumps({"id": str(number), "text": text}) + "\n")
            total, number = total + len(text.encode()), number + 1


def _all_for_training(cleaned: Path, out: Path) -> None:
    ids, texts = (read_column(cleaned / DOCUMENTS, column) for column in ("id", "text"))
    sides = [selection_row(*row, TRAIN) for row in zip(ids, texts, strict=True)]
    write_table(out / SELECTION, sides, SELECTION_SCHEMA)


def _encode_only(tokenizer: Path, cleaned: Path) -> None:
    import fastokens

    from model.tokenizer import TOKENIZER

    texts = read_column(cleaned / DOCUMENTS, "text")
    fastokens.Tokenizer.from_file(str(tokenizer / TOKENIZER)).encode_batch_flat(
        texts, split_special_tokens=True
    )


def main() -> None:
    """Measure each stage."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("file", type=Path)
    options.add_argument("--megabytes", type=float, default=64.0)
    options.add_argument("--profile", default="plain")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        megabytes = given.megabytes
        alone(None, megabytes, lambda: write_source(folder / "in" / "a.jsonl", given.file, megabytes))
        source = Source(path=str(folder / "in"), profile=given.profile)
        # One shard, whatever the text says of cuts.
        config = IngestConfig(sources=(source,), shard_bytes=10**9)
        (piece,) = list_pieces(config, SourceDigests()).each
        print(
            f"one shard of {megabytes:.0f} MB\n\n| stage | MB/CPU-s | peak memory, MB | MB read | MB written | files |"
        )
        print("|---|---|---|---|---|---|")
        read = folder / "read"
        read.mkdir()
        alone(
            "ingest",
            megabytes,
            lambda: ingest.fn(config, Piece(piece), out=read),
            (folder / "in",),
            (read,),
        )
        documents, cleaned = Shard(read / "shards" / "00000"), folder / "clean"
        alone(
            "clean",
            megabytes,
            lambda: clean.fn(CleanConfig(), documents=documents, out=cleaned),
            (documents.path,),
            (cleaned,),
        )
        kept = Shard(cleaned)
        alone(
            "minhash",
            megabytes,
            lambda: minhash.fn(MinhashConfig(), documents=kept, out=folder / "signed"),
            (cleaned,),
            (folder / "signed",),
        )
        index = folder / "index"
        index.mkdir()
        items = IndexBenchmarksConfig(tasks=("arc_easy", "sciq", "hellaswag"))
        alone(None, megabytes, lambda: index_benchmarks.fn(items, out=index))
        found = Artifact(index)
        alone(
            "decontaminate",
            megabytes,
            lambda: decontaminate.fn(documents=kept, index=found, out=folder / "clear"),
            (cleaned, index),
            (folder / "clear",),
        )
        alone(None, megabytes, lambda: _all_for_training(cleaned, folder / "sides"))
        whole = Artifact(cleaned, (cleaned,)), Artifact(folder, (folder / "sides",))
        learnt = folder / "tokenizer"
        how = TrainTokenizerConfig(vocabulary_size=8192, sample_bytes=5_000_000)
        alone(
            None,
            megabytes,
            lambda: train_tokenizer.fn(how, documents=whole[0], selection=whole[1], out=learnt),
        )
        side = Shard(folder / "sides")
        own = alone(
            "tokenize",
            megabytes,
            lambda: tokenize.fn(
                documents=kept, selection=side, tokenizer=Artifact(learnt), out=folder / "tokens"
            ),
            (cleaned, folder / "sides", learnt),
            (folder / "tokens",),
        )
        encoder = alone("the encoder alone", megabytes, lambda: _encode_only(learnt, cleaned))
        print(f"\ntokenize has {encoder / own:.0%} of the encoder's speed")


if __name__ == "__main__":
    main()
