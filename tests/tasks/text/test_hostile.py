"""Text that is made to cost time or memory, or to end a run: it costs its own, and the rest is read."""

import gzip
import json
import os
import string
import time
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.engine.sources import SourceDigests, walk
from tasks.text.clean import CleanConfig, ReplacePersonalData
from tasks.text.cleaning import Cleaning
from tasks.text.filters.replace_personal_data import _NO_DOMAINS
from tasks.text.judging import Documents, Fault, Faults, Filter, Mender
from tasks.text.pieces import list_pieces
from tasks.text.sources import IngestConfig, Source
from tests.tasks.text.test_ingest import run

N_ROWS = 400


def cpu_seconds(function: Any) -> float:
    before = time.process_time()
    function()
    return time.process_time() - before


def rows(count: int = N_ROWS) -> list[dict[str, str]]:
    return [{"text": f"{i} {i * 7919} {zlib.crc32(str(i).encode())}"} for i in range(count)]


def lines(count: int = N_ROWS) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows(count))


def write_corpus(folder: Path) -> dict[str, Path]:
    """The same rows in every format."""
    folder.mkdir()
    names = ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet")
    files = {name: folder / name for name in names}
    files["a.jsonl"].write_bytes(lines())
    files["b.jsonl.gz"].write_bytes(gzip.compress(lines()))
    # With a checksum, as the program zstd writes it; without one a flip may make any other text.
    files["c.jsonl.zst"].write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(lines()))
    table = pa.Table.from_pylist(rows())
    pq.write_table(table, files["d.parquet"], row_group_size=50, write_page_checksum=True)
    return files


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"])
def test_rows_in_are_rows_kept_and_rows_lost(tmp_path_factory: pytest.TempPathFactory, name: str, data: Any):
    """Whatever is flipped, cut or filled in: nothing fails, no text is made up, and what is lost is said."""
    root = tmp_path_factory.mktemp("fuzz")
    path = write_corpus(root / "in")[name]
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "zeros", "noise"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del content[at:]
    else:
        length = data.draw(st.integers(1, 2000))
        content[at : at + length] = bytes(length) if kind == "zeros" else os.urandom(length)
    path.write_bytes(content)
    documents, metrics, errors = run(root / "out", Source(path=str(root / "in")))
    assert metrics["documents"] == len(documents)
    assert len({row["id"] for row in documents}) == len(documents)
    own = [row for row in documents if row["id"].startswith(f"text/{name}")]
    assert len(documents) - len(own) == 3 * N_ROWS
    missing = N_ROWS - len(own)
    lost = [error for error in errors if error["where"].startswith(name)]
    assert len(errors) == len(lost) == sum(metrics["errors"].values())
    if name == "d.parquet" and all(error["rows"] is not None for error in lost):
        assert missing == sum(error["rows"] for error in lost)
    elif kind == "flip" and lost and all(error["rows"] is not None for error in lost):
        # A line feed that is gone joins two lines.
        assert missing <= 2 * sum(error["rows"] for error in lost)
    # Of plain lines that were cut off nobody can tell that they were there.
    if missing > 0 and content and not (kind == "cut" and name == "a.jsonl"):
        assert lost
        assert metrics["lost_bytes"] > 0
    if name in ("b.jsonl.gz", "c.jsonl.zst"):
        # They have a checksum; of others a flip may make another text, which nobody can tell.
        texts = {row["text"] for row in rows()}
        assert all(row["text"] in texts for row in own) or lost


def test_a_bad_page_costs_its_row_group_and_no_more(tmp_path: Path):
    path = write_corpus(tmp_path / "in")["d.parquet"]
    column = pq.ParquetFile(path).metadata.row_group(3).column(0)
    content = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(content)
    documents, metrics, errors = run(tmp_path / "out", Source(path=str(path)))
    assert N_ROWS - 50 <= len(documents) < N_ROWS
    assert metrics["lost_rows"] == N_ROWS - len(documents)
    assert 0 < metrics["lost_share"] <= 0.13
    assert errors[0]["error"].startswith("unreadable after row")


def test_everything_that_is_not_read_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "in"
    for name in (".hidden", "closed", "deep"):
        (folder / name).mkdir(parents=True)
    for name in (
        "a.txt",
        "b.png",
        "c.xyz",
        "d.TXT",
        "e",
        ".f.txt",
        ".hidden/g.txt",
        "deep/h.bin",
        "closed/i.txt",
    ):
        (folder / name).write_text("Some text.")
    (folder / "prices.csv").write_text("day,price\n1,2\n")
    (folder / "package.json").write_text('{"version": 1}')
    (folder / "empty.txt").write_text("")
    (folder / "empty.jsonl").write_text("")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "zero.txt").symlink_to("/dev/zero")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    documents, metrics, errors = run(tmp_path / "out", Source(path=str(folder)))
    assert [row["id"] for row in documents] == ["text/a.txt", "text/d.TXT"]
    assert {error["where"]: error["error"] for error in errors} == {
        "empty.txt": "an empty file",
        "empty.jsonl": "an empty file",
    }
    skipped = map(json.loads, (tmp_path / "out" / "figures" / "skipped.jsonl").read_text().splitlines())
    assert {row["where"]: row["why"] for row in skipped} == {
        ".f.txt": "hidden",
        ".hidden": "hidden",
        "b.png": "not a kind of file that is read (.png)",
        "c.xyz": "not a kind of file that is read (.xyz)",
        "closed": "unreadable folder: PermissionError",
        "deep/h.bin": "not a kind of file that is read (.bin)",
        "e": "not a kind of file that is read (no extension)",
        "package.json": "a file of JSON with no field with the text (its fields: 'version'; say which one in "
        "ingest.sources as text_field)",
        "pipe.jsonl": "not a regular file",
        "prices.csv": "a table with no field with the text (its fields: 'day', 'price'; say which one in ingest.sources "
        "as text_field)",
        "zero.txt": "not a regular file",
    }
    assert sum(metrics["skipped"].values()) == 11
    # A file of another kind that comes is told, although it changes no document.
    config = IngestConfig(sources=(Source(path=str(folder)),))
    before = list_pieces(config, SourceDigests())
    (folder / "j.png").write_text("")
    assert list_pieces(config, SourceDigests()) != before


def test_an_id_does_not_depend_on_neighbours(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "b.jsonl").write_text('{"id": "x", "text": "second"}\n')
    first, _, _ = run(tmp_path / "first", Source(path=str(folder)))
    (folder / "a.jsonl").write_text('{"id": "x", "text": "first"}\n{"id": "x", "text": "again"}\n')
    second, _, _ = run(tmp_path / "second", Source(path=str(folder)))
    assert [row["id"] for row in first] == ["text/b.jsonl:0"]
    assert {row["id"]: row["text"] for row in second}["text/b.jsonl:0"] == "second"
    assert len({row["id"] for row in second}) == 3


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_line_without_an_end_takes_no_more_memory_than_the_bound(tmp_path: Path, suffix: str):
    folder = tmp_path / "in"
    folder.mkdir()
    content = b'{"text": "good"}\n{"text": "' + b"a" * 30_000_000 + b'"}\n{"text": "fine"}\n'
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(suffix).suffix, bytes)(content)
    (folder / f"a{suffix}").write_bytes(packed)
    documents, metrics, errors = run(tmp_path / "out", Source(path=str(folder)), max_document_bytes=1_000_000)
    assert [row["text"] for row in documents] == ["good", "fine"]
    assert [error["error"] for error in errors] == ["larger than ingest.max_document_bytes"]
    assert metrics["lost_bytes"] > 30_000_000


def test_rows_that_end_a_reader_are_rows_with_errors(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    deep = "[" * 990 + "]" * 990
    (folder / "a.jsonl").write_text(
        f'{{"text": "one", "more": {deep}}}\n{{"text": "two"}}\n'
        + "[" * 100_000
        + "\n"
        + '{"text": "three"}\n'
    )
    years = pa.array([0, 10**18, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["four", "five", "six"], "when": years}), folder / "b.parquet")
    documents, _, errors = run(tmp_path / "out", Source(path=str(folder)))
    assert {"two", "three", "four", "six"} <= {row["text"] for row in documents}
    assert len(documents) + len(errors) == 7


def test_a_small_parquet_file_does_not_become_a_large_one(tmp_path: Path):
    """One text of a megabyte, thirty thousand times: Parquet keeps it once, and reading keeps one row at a time."""
    import resource

    column = pa.DictionaryArray.from_arrays(pa.array([0] * 30_000, pa.int32()), pa.array(["a" * 1_000_000]))
    pq.write_table(pa.table({"text": column}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    from tasks.text.readers import from_mapping, read_file

    source = Source(path=str(tmp_path / "bomb.parquet"))
    records = read_file(source, "bomb.parquet", tmp_path / "bomb.parquet", from_mapping, 10_000)
    assert all(record.error == "larger than ingest.max_document_bytes" for record in records)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # of 30 GB, in KiB


def test_a_text_of_megabytes_that_is_kept_once_is_held_a_few_times(tmp_path: Path):
    """Of so large a group equal texts do not stay one in memory."""
    from tasks.text.readers import from_mapping, read_file

    text, path = os.urandom(17_000_000).hex(), tmp_path / "bomb.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 48, pa.int32()), pa.array([text])).cast(
        pa.large_string()
    )
    pq.write_table(pa.table({"text": column}), path)
    del column
    assert path.stat().st_size < 1.5 * len(text)
    before, held = pa.total_allocated_bytes(), 0
    for record in read_file(Source(path=str(path)), path.name, path, from_mapping, 100_000_000):
        assert record.text == text
        held = max(held, pa.total_allocated_bytes() - before)
    assert held < 700_000_000  # of 1.6 GB


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_kept_as_differences_are_read(tmp_path: Path, encoding: str):
    """As Parquet's version 2 writes them; one that is repeated is kept once there, too."""
    from tasks.text.readers import from_mapping, read_file

    path, text = tmp_path / "delta.parquet", "x" * 4_000_000
    texts = [*map(str, range(20)), *[text] * 200]
    table = pa.table({"text": texts, "url": ["u"] * 220})
    encodings = {"text": encoding, "url": encoding}
    pq.write_table(table, path, use_dictionary=False, column_encoding=encodings)
    del table
    before, held = pa.total_allocated_bytes(), 0
    records = read_file(Source(path=str(path)), path.name, path, from_mapping, 10_000_000)
    for record, expected in zip(records, texts, strict=True):
        assert record.text == expected
        held = max(held, pa.total_allocated_bytes() - before)
    if encoding == "DELTA_BYTE_ARRAY":
        assert held < 700_000_000  # of 800 MB


def test_a_large_row_group_is_read_a_few_rows_at_a_time(tmp_path: Path):
    from tasks.text.readers import from_mapping, read_file

    texts = [os.urandom(1_000).hex() for _ in range(40_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "large.parquet")
    assert pq.read_metadata(tmp_path / "large.parquet").num_row_groups == 1
    source = Source(path=str(tmp_path / "large.parquet"))
    before = pa.total_allocated_bytes()
    held = 0
    for record, text in zip(
        read_file(source, "large.parquet", tmp_path / "large.parquet", from_mapping, 10_000),
        texts,
        strict=True,
    ):
        assert record.text == text
        held = max(held, pa.total_allocated_bytes() - before)
    assert held < 20_000_000  # of 80


@given(
    st.text(string.ascii_letters + string.digits + "._%+-' ", max_size=30),
    st.from_regex(
        r"[a-z][a-z0-9]{0,8}(\.[a-z]{1,8}){0,3}@([a-z0-9]{1,8}\.){1,3}[a-z]{2,6}", fullmatch=True
    ).filter(lambda address: address.rsplit(".", 1)[1] not in _NO_DOMAINS),
)
def test_an_address_is_replaced_wherever_it_stands(before: str, address: str):
    replaced = ReplacePersonalData().mend(f"{before} <{address}>, and")
    assert address not in replaced.replace("email@example.com", "")
    assert replaced.endswith("<email@example.com>, and")


@pytest.mark.parametrize("unit", ["a-b-", "a@", "@a.", "a.", "a'b'", "x@y.z ", "a@b-"])
def test_addresses_are_found_in_time_linear_in_the_text(unit: str):
    short, long = (
        cpu_seconds(lambda n=n: ReplacePersonalData().mend(unit * n + "@")) for n in (20_000, 200_000)
    )
    # Ten times the text; a quadratic pattern would take a hundred times as long, minutes in fact.
    assert long < 60 * max(short, 0.01)


class SlowMender(Mender):
    """Never ends with one of the texts."""

    def mend(self, text: str) -> str:
        while text == "slow":
            pass
        return text


class SlowFilter(Filter):
    """Never ends with one of the texts."""

    def judge(self, documents: Documents) -> Faults:
        while "slow" in documents.texts:
            pass
        return [Fault("bad", "", None, None) if text == "bad" else None for text in documents.texts]


@pytest.mark.parametrize("step", [SlowMender(), SlowFilter()])
def test_a_document_that_takes_too_long_is_dropped_and_named(step: Mender | Filter):
    texts = ["first", "second", "third", "slow", "last"]
    kept, dropped = Cleaning([("step", step)], 1.0)(Documents(pa.record_batch({"text": texts})))
    assert [kept[row] for row in sorted(kept)] == ["first", "second", "third", "last"]
    assert dropped[3]["reason"] == "takes longer than 1 seconds"
    assert CleanConfig().max_document_seconds > 1


def test_personal_data_is_replaced_by_both_blocks():
    text = "write to o'neil.x+y@mail.example.co.uk or 81.2.69.142, not a@b"
    replaced = ReplacePersonalData(ip_addresses=True).mend(text)
    assert replaced == "write to email@example.com or 192.0.2.1, not a@b"


def test_an_expression_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch):
    from tasks.evaluation import evaluate_answers

    monkeypatch.setattr(evaluate_answers, "_FORM_SECONDS", 0.2)
    assert evaluate_answers._formed("(a|aa)+$", "a" * 60 + "b") == 0.0
    assert evaluate_answers._formed("[0-9]+", "1790") == 1.0


def test_walk_sees_no_pipe(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert list(walk(tmp_path)) == []
