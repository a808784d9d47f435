"""What new text costs, beside what all of it cost at first: ingest to tokenize, in CPU-seconds.

    python benchmarks/retraining.py --text FOLDER [--share 0.05] [--store DIR]

FOLDER holds .txt, .jsonl (also .gz, .zst) or .parquet files of 100 MB or more. They are copied
into a working folder in an order by the hash of their names, so that the last are like the rest;
the last, at least SHARE of the bytes, are left out at first, then added. BPE training is not counted: retraining keeps the tokenizer.
CPU-seconds are those of the stages' processes, start-up included.
"""

import argparse
import asyncio
import hashlib
import os
import resource
import shutil
import tempfile
from pathlib import Path

from flows.pretrain import nodes_of, prepare_text
from flows.recipe.recipe import Recipe
from flows.runs.execute import build_shown, open_place, run_nodes
from tasks.engine.build import Outcome
from tasks.engine.stage import Node, finished


def cpu_seconds() -> float:
    """CPU-seconds of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prepare(recipe: Recipe, store: Path, tokenizer: Node | None) -> tuple[dict[str, Outcome], float]:
    """Build text and tokens; returns the outcomes, and the CPU-seconds without BPE training."""
    place = open_place(recipe, store)
    started = cpu_seconds()
    nodes = nodes_of(prepare_text(recipe, tokenizer))
    outcomes = asyncio.run(
        run_nodes(
            nodes,
            lambda node, inputs: build_shown(node, inputs, place, lambda progress: None),
            lambda *_: None,
        )
    )
    trained = outcomes["train_tokenizer"]
    return outcomes, cpu_seconds() - started - (0 if trained.cached else trained.stored.manifest.cpu_seconds)


def main() -> None:
    """Prepare the text without and with its last files, and print a table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--text", type=Path, required=True, help="folder of text")
    options.add_argument("--share", type=float, default=0.05, help="least share of the bytes that is new")
    options.add_argument("--shard-bytes", type=int, default=4_000_000, help="ingest.shard_bytes")
    options.add_argument("--store", type=Path, help="folder for results; a temporary one if empty")
    given = options.parse_args()
    files = [path for path in given.text.rglob("*") if path.is_file()]
    files.sort(key=lambda path: hashlib.sha256(path.name.encode()).hexdigest())
    total = sum(path.stat().st_size for path in files)
    new: list[Path] = []
    while sum(path.stat().st_size for path in new) < given.share * total:
        new.insert(0, files.pop())
    if not files:
        raise SystemExit("the text is one file: give several, so that some of them can come later")
    with tempfile.TemporaryDirectory(dir=given.store) as folder:
        text, store = Path(folder) / "text", Path(folder) / "store"
        recipe = Recipe.model_validate(
            {
                "name": "benchmark",
                "ingest": {
                    "sources": [{"path": str(text)}],
                    "shard_bytes": given.shard_bytes,
                    "max_error_rate": 1,
                },
                "split": {"validation_fraction": 0.02},
            }
        )
        text.mkdir()
        for i, path in enumerate(files):
            shutil.copyfile(path, text / f"{i:06d}-{path.name}")
        outcomes, first = prepare(recipe, store, None)
        for i, path in enumerate(new, len(files)):
            shutil.copyfile(path, text / f"{i:06d}-{path.name}")
        kept = finished("train_tokenizer", outcomes["train_tokenizer"].stored.manifest.key, "train_tokenizer")
        _, again = prepare(recipe, store, kept)
    share = sum(path.stat().st_size for path in new) / total
    print(f"{total / 1e6:.0f} MB, {os.cpu_count()} cores\n\n| what | CPU-seconds |\n|---|---|")
    print(
        f"| {100 * (1 - share):.1f}% of the text, at first | {first:.1f} |\n| {100 * share:.1f}% added | {again:.1f} |"
    )
    print(f"\nnew text costs {100 * again / first:.1f}% of the first time")


if __name__ == "__main__":
    main()
