"""Filters and signatures beside datatrove as its documentation sets it up: python benchmarks/filters.py FILE.jsonl.gz ...

Each file is rows of JSON with a field text. Large documents are cut at 16,000 characters, and a sample of them is taken.
Both sides see the same texts in one process. Prints tables in Markdown: MB of text for each CPU second, the share of
equal decisions, and each kind of disagreement. Needs `pip install spacy` for datatrove's default words.
"""

import argparse
import gzip
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig as StockConfig
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.pipeline.formatters.ftfy import FTFYFormatter
from datatrove.utils.hashing import HashConfig

from tasks.batches import batches
from tasks.characters import MOST_CHARACTERS
from tasks.engine.stage import Shard
from tasks.tables import write_table
from tasks.text.clean import CleanConfig, clean
from tasks.text.documents import DOCUMENTS, DOCUMENTS_SCHEMA
from tasks.text.filters.fix_unicode import FixUnicode
from tasks.text.filters.gopher_quality import GopherQuality
from tasks.text.filters.gopher_repetition import GopherRepetition
from tasks.text.judging import Documents, Filter
from tasks.text.minhash import minhash
from tasks.text.signatures import MinhashConfig
from tasks.text.words import PlainWords

_MOST_CHARACTERS = 16_000

Decisions = list[str | None]
"""Of each text why it is dropped, or None."""


def sample(path: Path, megabytes: float) -> list[str]:
    """Texts of a file, evenly over it, so many MB of them."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    pieces = [
        text[start : start + _MOST_CHARACTERS]
        for text in texts
        for start in range(0, len(text), _MOST_CHARACTERS)
    ]
    step = max(1, round(sum(map(len, pieces)) / megabytes / 1e6))
    return pieces[::step]


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and its CPU seconds."""
    started = time.process_time()
    value = function()
    return value, time.process_time() - started


def stock(block: Any, texts: Sequence[str]) -> Decisions:
    """The decisions of a filter of datatrove."""
    found = (block.filter(Document(text=text, id="")) for text in texts)
    return [None if verdict is True else verdict[1] for verdict in found]


def ours(step: Filter, texts: Sequence[str]) -> Decisions:
    """The decisions of one of our filters."""
    decisions: Decisions = []
    for batch in batches([len(text) for text in texts], MOST_CHARACTERS):
        own = pa.record_batch({"text": pa.array(texts[batch.start : batch.stop], pa.large_string())})
        decisions += [fault and fault.reason for fault in step.judge(Documents(own))]
    return decisions


def shard_of(folder: Path, texts: Sequence[str], profile: str = "web") -> Shard:
    """The texts as a shard."""
    columns = {"source": "s", "profile": profile, "metadata": "{}"}
    rows = [{"id": f"s/{i}", "text": text, **columns} for i, text in enumerate(texts)]
    write_table(folder / DOCUMENTS, rows, DOCUMENTS_SCHEMA)
    return Shard(folder)


def sign_stock(texts: Sequence[str], folder: Path, words: Any) -> None:
    """Signatures by datatrove, of the same shape as ours."""
    shape = MinhashConfig()
    config = StockConfig(
        n_grams=shape.n_grams,
        num_buckets=shape.buckets,
        hashes_per_bucket=shape.hashes_per_bucket,
        hash_config=HashConfig(precision=32),
    )
    step = MinhashDedupSignature(str(folder / "signatures"), config=config, language=words)
    step.run((Document(text=text, id=str(i)) for i, text in enumerate(texts)), 0, 1)


def compare(name: str, texts: list[str], words: Any) -> tuple[list[str], list[str]]:
    """Rows of the table of speeds, and lines on disagreements."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rows, kinds = [], []
    totals = [0.0, 0.0]

    def row(what: str, theirs: float, own: float, agreement: str = "", *, of_chain: bool = False) -> None:
        rows.append(
            f"| {name} | {what} | {megabytes / theirs:.2f} | {megabytes / own:.1f} | {theirs / own:.0f} | {agreement} |"
        )
        if of_chain:
            totals[0] += theirs
            totals[1] += own

    for what, kind, block in (
        ("quality", GopherQuality, GopherQualityFilter),
        ("repetition", GopherRepetition, GopherRepetitionFilter),
    ):
        theirs, their_seconds = timed(lambda block=block: stock(block(language=words), texts))
        for marks in (True, False):
            step = kind(marks_are_words=marks)
            ours(step, texts[:20])
            own, own_seconds = timed(lambda step=step: ours(step, texts))
            pairs = Counter(
                (before or "kept", now or "kept")
                for before, now in zip(theirs, own, strict=True)
                if (before is None) != (now is None)
            )
            agreement = f"{1 - sum(pairs.values()) / len(texts):.1%}"
            told = "marks are words" if marks else "default"
            row(f"{what}, {told}", their_seconds, own_seconds, agreement, of_chain=not marks)
            kinds += [
                f"- {name}, {what}, {told}: datatrove {before}, ours {now}: {count}"
                for (before, now), count in pairs.most_common()
            ]
        plain = stock(block(language=PlainWords()), texts)
        same = sum((a is None) == (b is None) for a, b in zip(plain, own, strict=True)) / len(texts)
        kinds.append(f"- {name}, {what}: datatrove's block with our words decides {same:.1%} alike")
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        shard = shard_of(folder / "in", texts)
        _, theirs = timed(lambda: sign_stock(texts, folder, words))
        _, own = timed(lambda: minhash.fn(MinhashConfig(), documents=shard, out=folder / "signed"))
        row("signatures, with their files", theirs, own, of_chain=True)
        row("the three together", *totals)
        _, theirs = timed(lambda: [FTFYFormatter().format(text) for text in texts])
        _, own = timed(lambda: list(map(FixUnicode().mend, texts)))
        row("broken characters", theirs, own)
        for profile in ("web", "plain"):
            shard_of(folder / "in", texts, profile)
            config = CleanConfig()
            _, own = timed(lambda config=config: clean.fn(config, documents=shard, out=folder / "clean"))
            rows.append(f"| {name} | the stage clean, profile {profile} | | {megabytes / own:.1f} | | |")
    return rows, kinds


def main() -> None:
    """Compare on each file."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("files", nargs="+", type=Path)
    options.add_argument("--megabytes", type=float, default=7.5, help="of each file")
    given = options.parse_args()
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    words = load_word_tokenizer("en")
    print("| text | step | datatrove, MB/CPU-s | ours | times | equal decisions |\n|---|---|---|---|---|---|")
    told = []
    for path in given.files:
        rows, kinds = compare(path.name.split(".")[0], sample(path, given.megabytes), words)
        print("\n".join(rows), flush=True)
        told += kinds
    print("\nEach kind of disagreement:\n")
    print("\n".join(told))


if __name__ == "__main__":
    main()
