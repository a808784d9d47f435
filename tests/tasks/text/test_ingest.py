"""ingest: every kind of source, what cannot be read, and where shards end."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model.errors import InputError
from tasks.engine.sources import SourceDigests
from tasks.tables import read_json_lines, read_table
from tasks.text.ingest import ingest
from tasks.text.pieces import list_pieces
from tasks.text.sources import IngestConfig, Source
from tests.reading import read_text


def run(out: Path, *sources: Source, **fields) -> tuple[list[dict], dict, list[dict]]:
    """Documents, metrics and errors."""
    out.mkdir(parents=True, exist_ok=True)
    config = IngestConfig(sources=sources, **{"max_error_rate": 1.0, **fields})
    shards, metrics = read_text(config, out)
    rows = [row for shard in shards for row in read_table(shard / "documents.parquet").to_pylist()]
    return rows, metrics, read_json_lines(out / "figures" / "errors.jsonl")


ROWS = [{"id": "a", "text": "Grüße", "year": 1790}, {"id": "b", "text": "two", "extra": [1, {"x": None}]}]


@pytest.fixture
def formats(tmp_path: Path) -> Path:
    """The same two rows in each format."""
    folder = tmp_path / "formats"
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(lines[:40]) + zstandard.compress(lines[40:]))
    pq.write_table(
        pa.Table.from_pylist([{"id": row["id"], "text": row["text"]} for row in ROWS]), folder / "d.parquet"
    )
    (folder / "e.txt").write_text("plain\n")
    (folder / "ignored.png").write_bytes(b"%PDF")
    return folder


def test_all_formats(tmp_path: Path, formats: Path):
    rows, metrics, errors = run(tmp_path / "out", Source(path=str(formats)))
    assert [row["text"] for row in rows] == ["Grüße", "two"] * 4 + ["plain\n"]
    assert [row["id"] for row in rows[:3]] == ["text/a.jsonl:0", "text/a.jsonl:1", "text/b.jsonl.gz:0"]
    assert [row["own_id"] for row in rows[:3]] == ["a", "b", "a"]
    assert json.loads(rows[0]["metadata"]) == {"year": 1790}
    assert json.loads(rows[1]["metadata"]) == {"extra": [1, {"x": None}]}
    assert rows[-1]["id"] == "text/e.txt"
    assert errors == []
    assert metrics["sources"]["text"] == {"documents": 9, "bytes": 4 * 10 + 6, "errors": 0}
    assert len({row["id"] for row in rows}) == 9
    assert metrics["skipped"] == {"not a kind of file that is read (.png)": 1}


@pytest.mark.parametrize("path", ["{}/a.jsonl", "{}/*.jsonl", "{}/**/a.jsonl"])
def test_a_file_and_a_glob(tmp_path: Path, formats: Path, path: str):
    rows, _, _ = run(tmp_path / "out", Source(path=path.format(formats)))
    assert [row["text"] for row in rows] == ["Grüße", "two"]


def test_what_cannot_be_read_is_named(tmp_path: Path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"ok")
    (folder / "b.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "c.jsonl").write_bytes(
        b'{"text": "fine"}\n{"text": 3}\n{"no": 1}\n[1]\n{broken\n\n{"text": "  "}\n{"text": "\\ud800"}\n'
    )
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-30])
    (folder / "e.parquet").write_bytes(b"PAR1 not really")
    (folder / "f.txt").write_bytes(b"")
    rows, metrics, errors = run(tmp_path / "out", Source(path=str(folder)))
    named = {error["where"]: error["error"] for error in errors}
    assert named["b.txt"] == "not UTF-16 at byte 2"
    assert named["c.jsonl:1"] == "field 'text' is int, not text"
    assert (
        named["c.jsonl:2"]
        == "no field with the text (its fields: 'no'; say which one in ingest.sources as text_field)"
    )
    assert named["c.jsonl:3"] == "not an object with fields"
    assert named["c.jsonl:4"].startswith("not JSON")
    assert named["c.jsonl:6"] == "no text"
    assert named["c.jsonl:7"] == "the record has a lone surrogate, so it is not Unicode"
    assert any(
        where.startswith("d.jsonl.gz") and "unreadable after row" in error for where, error in named.items()
    )
    assert any(where.startswith("e.parquet") for where in named)
    assert named["f.txt"] == "an empty file"
    assert sum(metrics["errors"].values()) == len(errors)
    assert {row["text"] for row in rows} == {"ok", "fine", "x"}


def test_a_cut_file_is_named_and_links_are_followed(tmp_path: Path):
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    lines = b"".join(json.dumps({"text": f"{i} {i * 7919}"}).encode() + b"\n" for i in range(3000))
    whole = zstandard.compress(lines)
    (folder / "cut.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    (elsewhere / "a.txt").write_text("linked")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere.txt").symlink_to(tmp_path / "missing")
    (folder / "strange.jsonl").write_bytes(
        b'{"text": "x", "id": "\\ud800"}\n{"text": "y", "more": "\\ud800"}\n'
    )
    rows, _, errors = run(tmp_path / "out", Source(path=str(folder)))
    named = {error["where"]: error["error"] for error in errors}
    assert any(where.startswith("cut.jsonl.zst") and "unreadable" in error for where, error in named.items())
    assert named["nowhere.txt"] == "unreadable: FileNotFoundError"
    assert {named["strange.jsonl:0"], named["strange.jsonl:1"]} == {
        "the record has a lone surrogate, so it is not Unicode"
    }
    assert "linked" in [row["text"] for row in rows]


def test_a_source_that_changes_while_it_is_read_is_not_published(tmp_path: Path):
    from model.errors import StageFailed
    from tasks.engine import build, child
    from tasks.engine.machine import Machine
    from tasks.engine.store import Store

    (tmp_path / "a.txt").write_text("first")
    config, store = IngestConfig(sources=(Source(path=str(tmp_path / "a.txt")),)), Store(tmp_path / "store")
    place = (store, Machine(), SourceDigests())
    node = ingest(config)
    resolved, key, _ = build.look_up(node, {}, store, SourceDigests())
    spec = build._spec(node, {}, resolved, key, store, Machine())
    (tmp_path / "a.txt").write_text("second")
    building = store.start_building("ingest", key)
    with pytest.raises(StageFailed, match="its source changed while it was read"):
        child.build_spec(spec, building)
    outcome = build.build_here(node, {}, *place)
    assert not outcome.cached
    assert outcome.stored.manifest.metrics["bytes"] == 6


def test_too_many_errors_stop_the_run(tmp_path: Path):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(
        InputError,
        match=r"(?s)20.0% of the bytes cannot be used, in 1 places with 1 rows.*max_error_rate.*b.txt: not UTF-8 at byte 0",
    ):
        run(tmp_path / "out", Source(path=str(tmp_path / "*.txt")), max_error_rate=0.05)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("{}/nowhere", "there is no file or folder"),
        ("{}/*.none", "holds no file"),
        ("{}/empty", "holds no file"),
        ("{}/a.png", "no kind of file that is read"),
        ("package:no_such_package", "is not installed"),
        ("package:../x", "is not installed"),
    ],
)
def test_sources_that_are_not_there(tmp_path: Path, path: str, sentence: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    config = IngestConfig(sources=(Source(path=path.format(tmp_path)),))
    with pytest.raises(InputError, match=sentence):
        list_pieces(config, SourceDigests())


def test_two_sources_need_two_names():
    with pytest.raises(ValidationError, match="give each a name of its own"):
        IngestConfig(sources=(Source(path="a"), Source(path="b")))


def test_a_local_hugging_face_dataset(tmp_path: Path):
    import datasets

    folder = tmp_path / "dataset"
    datasets.Dataset.from_list([{"text": "one", "id": "x"}, {"text": "two", "id": "y"}]).save_to_disk(
        str(folder)
    )
    rows, _, _ = run(tmp_path / "out", Source(path=f"dataset:{folder}", name="hf"))
    assert [(row["id"], row["text"]) for row in rows] == [("hf/train:0", "one"), ("hf/train:1", "two")]
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "train.jsonl").write_text('{"text": "three"}\n')
    rows, _, _ = run(tmp_path / "out2", Source(path=f"dataset:{plain}", name="hf"))
    assert [row["text"] for row in rows] == ["three"]


def test_the_fingerprint_is_of_content_not_of_place(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("same")
    digests = SourceDigests(tmp_path / "memory.sqlite")
    prints = [
        list_pieces(IngestConfig(sources=(Source(path=str(tmp_path / n)),)), digests) for n in ("one", "two")
    ]
    assert prints[0] == prints[1]
    (tmp_path / "two" / "a.txt").write_text("diff")
    changed = list_pieces(IngestConfig(sources=(Source(path=str(tmp_path / "two")),)), digests)
    assert changed != prints[0]


def shards_of(folder: Path, out: Path) -> list[bytes]:
    shards, _ = read_text(IngestConfig(sources=(Source(path=str(folder)),), shard_bytes=1000), out)
    return [(shard / "documents.parquet").read_bytes() for shard in shards]


@given(position=st.integers(0, 59), size=st.integers(1, 400))
def test_an_added_file_changes_shards_near_it_only(tmp_path_factory, position: int, size: int):
    base = tmp_path_factory.mktemp("shards")
    folder = base / "text"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i:03d}.txt").write_text(f"{i} " * (20 + 7 * i % 50))
    before = shards_of(folder, base / "before")
    (folder / f"{position:03d}-new.txt").write_text("n" * size)
    after = shards_of(folder, base / "after")
    kept = len(set(before) & set(after))
    assert len(before) - kept <= 4
    assert len(before) > 6
    largest = max(
        sum(len(t.encode()) for t in read_table(p / "documents.parquet").column("text").to_pylist())
        for p in (base / "after" / "pieces").glob("*/shards/*")
    )
    assert largest <= 3000


def test_the_order_in_which_sources_are_written_down_changes_nothing(tmp_path: Path):
    from tasks.engine.keys import digest
    from tasks.text.split import SplitConfig

    sources = [Source(path=str(tmp_path), name=name) for name in ("b", "a")]
    assert digest(IngestConfig(sources=tuple(sources))) == digest(IngestConfig(sources=tuple(sources[::-1])))
    ids = ("a/1", "b/2")
    assert digest(SplitConfig(validation_ids=ids)) == digest(SplitConfig(validation_ids=ids[::-1]))


@pytest.mark.parametrize("outside", ["../outside/x.jsonl", ".hidden/x.jsonl"])
def test_a_dataset_folder_reads_nothing_that_its_fingerprint_does_not_cover(tmp_path: Path, outside: str):
    folder = tmp_path / "dataset"
    folder.mkdir()
    named = folder / outside
    named.parent.mkdir(exist_ok=True)
    named.write_text('{"text": "from elsewhere"}\n')
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {outside}\n---\n"
    )
    with pytest.raises(InputError, match="hidden or not in that folder"):
        run(tmp_path / "out", Source(path=f"dataset:{folder}"))
    (folder / "README.md").unlink()
    (folder / "train.jsonl").write_text('{"text": "from inside"}\n')
    rows, _, _ = run(tmp_path / "out", Source(path=f"dataset:{folder}"))
    assert [row["text"] for row in rows] == ["from inside"]


def test_metadata_without_a_json_type_is_told_and_not_its_address():
    import datetime
    from decimal import Decimal

    from tasks.tables import sorted_json

    class Image:
        pass

    told = sorted_json({"a": Image(), "b": b"123", "c": datetime.date(1790, 1, 8), "d": Decimal("1.50")})
    assert (
        told
        == '{"a": "(Image, not kept)", "b": "(bytes of 3 bytes, not kept)", "c": "1790-01-08", "d": "1.50"}'
    )
