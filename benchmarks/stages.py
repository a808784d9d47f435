"""Speed and memory of each stage on one shard of text: python -m benchmarks.stages FILE.jsonl.gz --megabytes 64.

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
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.duplicates import find_pairs
from tasks.benchmarks.index_benchmarks import IndexBenchmarksConfig, index_benchmarks
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Artifact, Piece, Shard
from tasks.tables import read_column
from tasks.text.clean import CleanConfig, clean
from tasks.text.decontaminate import decontaminate
from tasks.text.deduplicate import DeduplicateConfig, deduplicate
from tasks.text.documents import DOCUMENTS
from tasks.text.ingest import ingest
from tasks.text.minhash import minhash
from tasks.text.pieces import list_pieces
from tasks.text.signatures import MinhashConfig
from tasks.text.sources import IngestConfig, Source
from tasks.text.split import SplitConfig, split
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


def _encode_only(tokenizer: Path, cleaned: Path) -> None:
    import fastokens

    from model.tokenizer import TOKENIZER

    texts = read_column(cleaned / DOCUMENTS, "text")
    fastokens.Tokenizer.from_file(str(tokenizer / TOKENIZER)).encode_batch_flat(
        texts, split_special_tokens=True
    )


def measure_text(folder: Path, config: IngestConfig, megabytes: float) -> Path:
    """Measure the stages that make text of what is read; returns the cleaned shard, beside which its sides are."""
    (piece,) = list_pieces(config, SourceDigests()).each
    read, cleaned, signed, clear = (folder / name for name in ("read", "clean", "signed", "clear"))
    read.mkdir()
    run = partial(ingest.fn, config, Piece(piece), out=read)
    alone("ingest", megabytes, run, (folder / "in",), (read,))
    documents, kept = Shard(read / "shards" / "00000"), Shard(cleaned)
    run = partial(clean.fn, CleanConfig(), documents=documents, out=cleaned)
    alone("clean", megabytes, run, (documents.path,), (cleaned,))
    run = partial(minhash.fn, MinhashConfig(), documents=kept, out=signed)
    alone("minhash", megabytes, run, (cleaned,), (signed,))

    # Over all shards, of which there is one here.
    pairs, duplicates = folder / "pairs", folder / "duplicates"
    duplicates.mkdir()
    run = partial(find_pairs, pairs, (signed,))
    alone("find_copies, and find_duplicates of all buckets", megabytes, run, (signed,), (pairs,))
    found = {"copies": Artifact(pairs / "copies"), "signatures": Artifact(signed, (signed,))}
    found["pairs"] = Artifact(pairs, tuple(sorted(pairs.glob("[0-9]*"))))
    run = partial(deduplicate.fn, DeduplicateConfig(), **found, out=duplicates)
    alone("deduplicate", megabytes, run, (signed, pairs), (duplicates,))

    index = folder / "index"
    index.mkdir()
    items = IndexBenchmarksConfig(tasks=("arc_easy", "sciq", "hellaswag"))
    alone(None, megabytes, partial(index_benchmarks.fn, items, out=index))
    run = partial(decontaminate.fn, documents=kept, index=Artifact(index), out=clear)
    alone("decontaminate", megabytes, run, (cleaned, index), (clear,))
    verdicts = {"duplicates": Shard(duplicates / "shards" / "00000"), "contaminated": Shard(clear)}
    run = partial(split.fn, SplitConfig(), documents=kept, **verdicts, out=folder / "sides")
    alone("split", megabytes, run, (cleaned, duplicates, clear), (folder / "sides",))
    return cleaned


def measure_tokens(folder: Path, cleaned: Path, megabytes: float) -> None:
    """Measure the encoding of a cleaned shard, beside the encoder alone."""
    sides, learnt = folder / "sides", folder / "tokenizer"
    how = TrainTokenizerConfig(vocabulary_size=8192, sample_bytes=5_000_000)
    whole = {"documents": Artifact(cleaned, (cleaned,)), "selection": Artifact(folder, (sides,))}
    alone(None, megabytes, partial(train_tokenizer.fn, how, **whole, out=learnt))
    shards = {"documents": Shard(cleaned), "selection": Shard(sides)}
    run = partial(tokenize.fn, **shards, tokenizer=Artifact(learnt), out=folder / "tokens")
    own = alone("tokenize", megabytes, run, (cleaned, sides, learnt), (folder / "tokens",))
    encoder = alone("the encoder alone", megabytes, partial(_encode_only, learnt, cleaned))
    print(f"\ntokenize has {encoder / own:.0%} of the encoder's speed")


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
        folder, megabytes = Path(name), given.megabytes
        (folder / "in").mkdir()
        alone(None, megabytes, partial(write_source, folder / "in" / "a.jsonl", given.file, megabytes))
        source = Source(path=str(folder / "in"), profile=given.profile)
        print(
            f"one shard of {megabytes:.0f} MB\n\n| stage | MB/CPU-s | peak memory, MB | MB read | MB written | files |"
        )
        print("|---|---|---|---|---|---|")
        # One shard, whatever the text says of cuts.
        cleaned = measure_text(folder, IngestConfig(sources=(source,), shard_bytes=10**9), megabytes)
        measure_tokens(folder, cleaned, megabytes)


if __name__ == "__main__":
    main()
