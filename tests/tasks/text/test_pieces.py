"""Pieces: each is read by itself, together they are the text, and what is added changes its own piece only."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from tasks.engine.sources import SourceDigests
from tasks.tables import read_json_lines, read_table
from tasks.text.listing import files_of
from tasks.text.pieces import Lines, _ranges_of_lines, list_pieces, sha256_of_lines
from tasks.text.sources import IngestConfig, Source, path_of_name
from tests.reading import read_text


def config_of(folder: Path, **fields) -> IngestConfig:
    return IngestConfig(sources=(Source(path=str(folder)),), shard_bytes=1000, max_error_rate=1.0, **fields)


def pieces_of(folder: Path) -> list[str]:
    return [json.dumps(piece) for piece in list_pieces(config_of(folder), SourceDigests()).each]


@given(
    lines=st.lists(st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")), max_size=40),
    range_bytes=st.integers(1, 300),
    ends=st.booleans(),
)
def test_ranges_of_lines_are_the_file(tmp_path_factory, lines: list[bytes], range_bytes: int, ends: bool):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    whole = b"\n".join(lines) + (b"\n" if ends else b"")
    path.write_bytes(whole)
    ranges = json.loads(_ranges_of_lines(path, range_bytes))
    assert sum(size for _, size, _, _ in ranges) == len(whole)
    end = 0
    for offset, size, first_row, sha256 in ranges:
        assert offset == end
        end += size
        assert first_row == whole[:offset].count(b"\n")
        assert whole[:offset].endswith(b"\n") or not offset
        assert sha256 == sha256_of_lines(path, Lines(offset=offset, size=size, first_row=first_row))


def test_a_large_file_of_rows_is_read_in_ranges_with_the_ids_that_it_had(tmp_path: Path):
    rows = [{"text": f"{i} " * 20 + "ü"} for i in range(900)]
    (tmp_path / "in").mkdir()
    lines = "".join(json.dumps(row) + ("\n\n" if i % 7 == 0 else "\n") for i, row in enumerate(rows))
    (tmp_path / "in" / "a.jsonl").write_text(lines)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "b.parquet", row_group_size=50)
    config = config_of(tmp_path / "in")
    pieces = list_pieces(config, SourceDigests()).each
    assert sum("lines" in piece for piece in pieces) > 8
    assert sum("row_groups" in piece for piece in pieces) > 8
    shards, metrics = read_text(config, tmp_path / "out")
    found = [row for shard in shards for row in read_table(shard / "documents.parquet").to_pylist()]
    assert [row["text"] for row in found] == [row["text"] for row in rows] * 2
    numbers = [number for number, line in enumerate(lines.splitlines()) if line]
    assert [row["id"] for row in found] == [
        *(f"text/a.jsonl:{number}" for number in numbers),
        *(f"text/b.parquet:{number}" for number in range(900)),
    ]
    assert metrics["documents"] == 1800
    largest = max(
        sum(map(len, read_table(shard / "documents.parquet").column("text").to_pylist())) for shard in shards
    )
    assert largest <= 3000


def test_lines_that_are_added_at_the_end_change_the_last_range(tmp_path: Path):
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": f"{i} " * 20}) + "\n" for i in range(900)))
    before = pieces_of(path.parent)
    with path.open("a") as file:
        file.write('{"text": "new"}\n')
    after = pieces_of(path.parent)
    assert len(before) > 8
    assert before[:-1] == after[: len(before) - 1]
    assert before[-1] not in after


@given(position=st.integers(0, 199), size=st.integers(1, 900))
def test_a_file_that_is_added_changes_its_group(tmp_path_factory, position: int, size: int):
    folder = tmp_path_factory.mktemp("small")
    for i in range(200):
        (folder / f"{i:03d}.txt").write_text(f"{i} " * (10 + 7 * i % 50))
    before = set(pieces_of(folder))
    (folder / f"{position:03d}-new.txt").write_text("n" * size)
    after = set(pieces_of(folder))
    assert len(before) > 10
    assert len(before - after) <= 3


def test_what_is_left_out_is_told_and_changes_no_piece(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    before = list_pieces(config_of(tmp_path / "in"), SourceDigests())
    (tmp_path / "in" / "b.png").write_bytes(b"%PNG")
    (tmp_path / "in" / ".hidden").write_text("x")
    after = list_pieces(config_of(tmp_path / "in"), SourceDigests())
    assert before.each == after.each
    assert before.source != after.source
    read_text(config_of(tmp_path / "in"), tmp_path / "out")
    skipped = read_json_lines(tmp_path / "out" / "figures" / "skipped.jsonl")
    assert [row["where"] for row in skipped] == [".hidden", "b.png"]
    assert read_json_lines(tmp_path / "out" / "figures" / "pieces.jsonl") == after.each


def test_row_groups_that_are_added_at_the_end_change_the_last_range(tmp_path: Path):
    path = tmp_path / "in" / "a.parquet"
    path.parent.mkdir()
    tables = [pa.table({"text": [f"{i} {part} " * 20 for i in range(50)]}) for part in range(20)]

    def write(parts: int) -> list[str]:
        with pq.ParquetWriter(path, tables[0].schema) as writer:
            for table in tables[:parts]:
                writer.write_table(table)
        return pieces_of(path.parent)

    before, after = write(19), write(20)
    assert len(before) > 5
    assert before[:-1] == after[: len(before) - 1]
    tables[3] = tables[4]
    assert sum(piece in after for piece in write(20)) == len(after) - 1


def test_a_large_file_that_cannot_be_read_is_counted(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.txt").write_text("good")
    for name in ("a.jsonl", "b.parquet"):
        (tmp_path / "in" / name).write_bytes(b"\xff" * 50_000)
    _, metrics = read_text(config_of(tmp_path / "in"), tmp_path / "out")
    assert metrics["documents"] == 1
    assert sum(metrics["errors"].values()) >= 2


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=6, unique=True))
def test_every_name_is_one_of_its_own_and_leads_back(tmp_path_factory, names: list[bytes]):
    root = tmp_path_factory.mktemp("names")
    wanted = [name.replace(b"/", b"-").replace(b"\0", b"-").strip(b".") for name in names]
    for name in {name + b"\\udcff.txt" for name in wanted} | {name + b"\xff.txt" for name in wanted}:
        (Path(os.fsdecode(os.fsencode(root) + b"/x" + name))).write_text("text")
    files = files_of(Source(path=str(root)))
    assert len(files.by_name) == len(files.paths)
    for name, path in files.by_name.items():
        name.encode()
        assert path_of_name(root, name) == path
