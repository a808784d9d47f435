"""What a shard costs beside its work, what workers gain, and what memory does as the text grows.

python -m benchmarks.scale overhead --shards 10000 [--cluster machine.yaml]  milliseconds a shard of nothing, and the plan of them
python -m benchmarks.scale workers TEXT_FOLDER                               ingest, clean and minhash with 1 and with 2 workers, and
                                                                             by two commands that share nothing
python -m benchmarks.scale memory TEXT_FOLDER                                peak memory of each stage at once and ten times the text
python -m benchmarks.scale duplicates --documents 1000000                    deduplicate on random signatures
python -m benchmarks.scale sample --shards 2000                              what a tokenizer learns from, chosen of so much text
python -m benchmarks.scale list --files 100000                               so many small files: hashed, listed again, and one more
python -m benchmarks.scale driver --shards 160000                            a stage of so many shards of nothing
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.duplicates import find_pairs
from benchmarks.nothing import CountConfig, nothing, numbers
from flows.pretrain import prepare_text
from flows.recipe.read import load_machine
from flows.recipe.recipe import Recipe
from flows.runs.execute import Place, build_shown, run_nodes
from flows.runs.plan import plan
from tasks.engine.build import Outcome, look_up
from tasks.engine.machine import Machine
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Artifact, Node
from tasks.engine.store import Store, Stored
from tasks.tables import write_arrays
from tasks.text.deduplicate import DeduplicateConfig, deduplicate
from tasks.text.pieces import list_pieces
from tasks.text.selection import SELECTION, SELECTION_SCHEMA, TRAIN
from tasks.text.signatures import ROWS, SIGNATURES, SIGNED, SIGNED_SCHEMA
from tasks.text.sources import IngestConfig, Source
from tasks.tokens.train_tokenizer import Sample


def build(nodes: list[Node], store: Path, machine: Machine) -> dict[str, Outcome]:
    """Build nodes, each in its child process."""
    place = Place(Store(store), SourceDigests(store / "sources.sqlite"), machine)

    async def build_node(node: Node, inputs: dict[str, Stored]) -> Outcome:
        return await build_shown(node, inputs, place, lambda progress: None)

    return asyncio.run(run_nodes(nodes, build_node, lambda node, outcome: None))


@contextmanager
def store_on_disk() -> Iterator[Path]:
    """A store in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        yield Path(folder)


def overhead(n_shards: int, machine: Machine) -> None:
    """Milliseconds a shard of nothing, and seconds of the plan of a store that has them."""
    with store_on_disk() as folder:
        first = numbers(CountConfig(shards=n_shards))
        nodes = [first, nothing(numbers=first)]
        outcomes = build(nodes, folder, machine)
        for name, outcome in outcomes.items():
            each = 1000 * outcome.seconds / n_shards
            print(
                f"{machine.cluster.kind}: {name}, {n_shards} shards: {outcome.seconds:.1f} s, {each:.1f} ms a shard"
            )
        n_results = _with_other_results(folder)
        store = Store(folder)
        started = time.perf_counter()
        plan(nodes, store, SourceDigests(), {})
        seconds = time.perf_counter() - started
        print(f"plan of {2 * n_shards} shards, all there, in a store of {n_results} results: {seconds:.2f} s")


def _with_other_results(store: Path, n_results: int = 1000) -> int:
    """Give a store so many other results of a stage that it has; returns how many results there are."""
    (small,) = build([numbers(CountConfig(shards=1))], store, Machine()).values()
    whole = small.stored.out.parent
    manifest = json.loads((whole / "manifest.json").read_text())
    for number in range(n_results):
        other = whole.with_name(f"{number:032x}")
        shutil.copytree(whole, other, symlinks=True)
        (other / "manifest.json").write_text(json.dumps({**manifest, "key": other.name}))
    return len(list(store.glob("artifacts/*/*")))


def _text_seconds(text: Path, workers: int) -> dict[str, float]:
    """Seconds of ingest, clean and minhash in a store of their own."""
    recipe = Recipe.model_validate({"ingest": {"sources": [{"path": str(text)}]}})
    prepared = prepare_text(recipe)
    nodes = [prepared.documents, prepared.cleaned, prepared.signatures]
    with store_on_disk() as folder:
        outcomes = build(nodes, folder, Machine(workers=workers))
    return {name: outcome.seconds for name, outcome in outcomes.items()}


def workers(text: Path) -> None:
    """Seconds of the stages of the text with one worker and with two, and of two commands that share nothing.

    The last is what this computer can give: two processes on two cores may share a cache, a bus, or a core.
    """
    one, two = (_text_seconds(text, count) for count in (1, 2))
    for name, seconds in one.items():
        print(
            f"{name}: {seconds:.1f} s with 1 worker, {two[name]:.1f} s with 2: {seconds / two[name]:.2f} times"
        )
    alone, shared = sum(one.values()), sum(two.values())
    print(f"together: {alone:.1f} s, {shared:.1f} s: {alone / shared:.2f} times")
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        beside = list(pool.map(_text_seconds, [text, text], [1, 1]))
    for name, seconds in one.items():
        slower = max(each[name] for each in beside)
        print(
            f"{name}, twice, by two commands that share nothing: {slower:.1f} s, {2 * seconds / slower:.2f} times"
        )
    slower = max(sum(each.values()) for each in beside)
    print(f"together: {slower:.1f} s, {2 * alone / slower:.2f} times")


def memory(text: Path) -> None:
    """Peak memory of each stage, on the text once and ten times, each copy made different."""
    rows: dict[str, list[int]] = {}
    for copies in (1, 10):
        with store_on_disk() as folder:
            for copy in range(copies):
                target = folder / "text" / str(copy)
                shutil.copytree(text, target)
                for path in target.rglob("*.txt"):
                    words = path.read_text(errors="replace").split(" ")
                    path.write_text(
                        " ".join(f"{word}{copy}" if i % 3 == 0 else word for i, word in enumerate(words))
                    )
            source = {"sources": [{"path": str(folder / "text")}], "shard_bytes": 1_000_000}
            recipe = Recipe.model_validate({"ingest": source, "evaluate_model": {"tasks": []}})
            prepared = prepare_text(recipe)
            nodes = [
                prepared.documents,
                prepared.cleaned,
                prepared.signatures,
                prepared.duplicates,
                prepared.index,
                prepared.contaminated,
                prepared.selection,
            ]
            for name, outcome in build(nodes, folder / "store", Machine(workers=2)).items():
                rows.setdefault(name, []).append(outcome.stored.manifest.peak_memory_bytes)
    for name, (once, tenfold) in rows.items():
        print(f"{name}: {once / 1e6:.0f} MB once, {tenfold / 1e6:.0f} MB at ten times the text")


def duplicates(n_documents: int, copies: float) -> None:
    """Seconds and peak memory of deduplicate, on random signatures of which one in twenty is repeated.

    Args:
        copies: share of the documents that have the text of another one, in copies of three on the average.
    """
    generator = np.random.default_rng(0)
    with store_on_disk() as folder:
        per_shard, shards = 20_000, []
        for first in range(0, n_documents, per_shard):
            size = min(per_shard, n_documents - first)
            signatures = generator.integers(0, 2**32, (size, 112), np.uint32)
            repeated = generator.random(size) < 0.05
            signatures[repeated] = signatures[0]
            digests = generator.integers(0, 2**63, (2, size), np.uint64)
            copied = np.flatnonzero(generator.random(size) < copies)
            originals = generator.integers(0, max(1, len(copied) // 3), len(copied))
            signatures[copied], digests[1, copied] = signatures[originals], digests[1, originals]
            shard = folder / "in" / f"{first:09d}"
            shard.mkdir(parents=True)
            np.save(shard / SIGNATURES, np.ascontiguousarray(signatures.T))
            np.save(shard / ROWS, np.arange(size, dtype="<u4"))
            columns = {
                "id": [f"text/{first + i}" for i in range(size)],
                "source": ["text"] * size,
                "digest": digests[0],
                "text_digest": digests[1],
                "is_code": [False] * size,
            }
            write_arrays(shard / SIGNED, columns, SIGNED_SCHEMA)
            shards.append(shard)
        (folder / "out").mkdir()
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        equal, pairs = find_pairs(folder / "pairs", tuple(shards))
        found = time.perf_counter() - started
        given = {"signatures": Artifact(folder / "in", tuple(shards)), "copies": equal, "pairs": pairs}
        figures = deduplicate.fn(DeduplicateConfig(), **given, out=folder / "out")
        seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{n_documents} documents in {len(shards)} shards: {found:.1f} s for all buckets, one after the other, and "
            f"{seconds - found:.1f} s for the rest, "
            f"{(peak - before) / 1024:.0f} MB above the {before / 1024:.0f} MB before; {figures}"
        )


def sample(n_shards: int) -> None:
    """Seconds and memory of choosing what a tokenizer learns from, of shards of 64 MB in documents of 5 KB that are not there."""
    generator, per_shard = np.random.default_rng(0), 12_800
    with store_on_disk() as folder:
        shards = [folder / f"{number:06d}" for number in range(n_shards)]
        for shard in shards:
            columns = {
                "id": [f"text/{shard.name}/{row}" for row in range(per_shard)],
                "side": [TRAIN] * per_shard,
                "reason": [None] * per_shard,
                "text_digest": generator.integers(0, 2**63, per_shard, np.uint64),
                "bytes": generator.integers(1, 10_000, per_shard),
            }
            write_arrays(shard / SELECTION, columns, SELECTION_SCHEMA)
        selection = Artifact(folder, tuple(shards))
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        _, chosen = Sample(selection, selection, TRAIN, 200_000_000).choose()
        seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        holding = sum(1 for rows in chosen if len(rows))
        print(
            f"{n_shards * per_shard:,} documents in {n_shards} shards: {seconds:.1f} s, {(peak - before) / 1024:.0f} MB above the "
            f"{before / 1024:.0f} MB before; {sum(map(len, chosen)):,} documents are taken, from {holding} shards"
        )


def list_files(n_files: int) -> None:
    """CPU seconds of the pieces of a folder of small files: at first, again, and with one file more; and what that changes."""
    with store_on_disk() as store, store_on_disk() as text:
        for number in range(n_files):
            folder = text / f"{number // 1000:05d}"
            folder.mkdir(exist_ok=True)
            (folder / f"{number:07d}.txt").write_text(f"text {number}\n" * 20)
        config, digests = IngestConfig(sources=(Source(path=str(text)),)), store / "sources.sqlite"

        def pieces() -> tuple[list[Any], float]:
            started = time.process_time()
            return list_pieces(config, SourceDigests(digests)).each, time.process_time() - started

        _, first = pieces()
        before, again = pieces()
        (text / "00000" / "one-more.txt").write_text("more text\n")
        after, more = pieces()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        changed = sum(piece not in before for piece in after)
        print(
            f"{n_files} files in {len(before)} pieces: {first:.1f} CPU seconds at first, {again:.1f} again, {peak:.0f} MB; one file "
            f"more: {more:.1f} s, and {changed} of {len(after)} pieces are others"
        )


def driver(n_shards: int) -> None:
    """What the keys of so many shards, the file that workers read, and their build cost the driver."""
    with store_on_disk() as folder:
        started = time.perf_counter()
        node = numbers(CountConfig(shards=n_shards))
        resolved, _, _ = look_up(node, {}, Store(folder), SourceDigests())
        keys = time.perf_counter() - started
        text = json.dumps({"shard_keys": resolved.shard_keys, "pieces": resolved.pieces})
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{n_shards} shards: keys in {keys:.1f} s, a spec of {len(text) / 1e6:.0f} MB, {peak:.0f} MB")
        outcome = build([node], folder, Machine())[node.name]
        child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"built in {outcome.seconds:.0f} s; largest process {child:.0f} MB, this one {peak:.0f} MB")


def main() -> None:
    """Measure what the arguments ask for."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = options.add_subparsers(dest="what", required=True)
    for name, n_shards in (("overhead", 10_000), ("sample", 2000), ("driver", 160_000)):
        commands.add_parser(name).add_argument("--shards", type=int, default=n_shards)
    commands.choices["overhead"].add_argument(
        "--cluster", type=Path, help="a machine file; this machine if left out"
    )
    commands.add_parser("list").add_argument("--files", type=int, default=100_000)
    for name in ("workers", "memory"):
        commands.add_parser(name).add_argument("text", type=Path)
    commands.add_parser("duplicates").add_argument("--documents", type=int, default=1_000_000)
    commands.choices["duplicates"].add_argument("--copies", type=float, default=0.0, metavar="SHARE")
    given = options.parse_args()
    # Children and workers find the stages of nothing here.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    match given.what:
        case "overhead":
            overhead(given.shards, load_machine(given.cluster))
        case "workers":
            workers(given.text)
        case "memory":
            memory(given.text)
        case "duplicates":
            duplicates(given.documents, given.copies)
        case "list":
            list_files(given.files)
        case "sample":
            sample(given.shards)
        case _:
            driver(given.shards)


if __name__ == "__main__":
    main()
