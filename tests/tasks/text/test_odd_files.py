"""Files as spreadsheets, browsers and databases write them: read, or said to be what they are, and never taken apart."""

import datetime
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import InputError
from tasks.text.html import BadPage, text_of_page
from tasks.text.listing import files_of
from tasks.text.read_conversations import ReadConversationsConfig, read_conversations
from tasks.text.sources import Source
from tests.tasks.text.test_ingest import run

PROSE = "The people of this country have always known what they want of those who serve them. " * 4


def texts(tmp_path: Path, name: str, content: bytes, **fields) -> tuple[list[str], dict, list[dict]]:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    (folder / "ok.txt").write_text("ok")
    (folder / name).write_bytes(content)
    rows, metrics, errors = run(tmp_path / "out", Source(path=str(folder), **fields))
    return [row["text"] for row in rows if row["text"] != "ok"], metrics, errors


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_table_as_a_spreadsheet_writes_it(tmp_path: Path, encoding: str):
    table = "\r\n".join(["", "id,text", '1,"Grüße, ""alle"""', "2,zwei"])
    found, _, errors = texts(tmp_path, "a.csv", table.encode(encoding))
    assert found == ['Grüße, "alle"', "zwei"]
    assert not errors


@pytest.mark.parametrize(
    ("table", "error", "rows"),
    [
        ('id,text\n1,one\n2,"two\n3,three\n', "no row of a table (unexpected end of data)", None),
        ("text,text\none,two\n", "a table with two columns 'text'", None),
        ("id,text\r1,one\r", "no table: its first row cannot be read", None),
    ],
)
def test_a_broken_table_is_an_error_with_what_is_lost(
    tmp_path: Path, table: str, error: str, rows: int | None
):
    _, metrics, errors = texts(tmp_path, "a.csv", table.encode())
    assert errors[-1]["error"].startswith(error)
    assert errors[-1]["rows"] is rows
    assert metrics["lost_bytes"] > 0


def test_a_column_that_python_cannot_show_costs_no_text(tmp_path: Path):
    times = pa.array([0, 1], pa.timestamp("us", tz="Mars/Olympus"))
    table = pa.table({"text": ["one", "two"], "at": times})
    pq.write_table(table, tmp_path / "a.parquet")
    found, _, errors = texts(tmp_path, "a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert found == ["one", "two"]
    assert not errors


@pytest.mark.parametrize("name", ["text", "id", "note"])
def test_a_value_that_is_not_utf_8_becomes_no_text_and_no_id(tmp_path: Path, name: str):
    """As Parquet files from elsewhere have them, which no reader checks."""
    column = pa.array([b"one", b"a\xff\xffb", b"three"]).view(pa.string())
    names = [each for each in ("text", "id", "note") if each != name]
    table = pa.table({name: column, **{each: ["x", "y", "z"] for each in names}})
    pq.write_table(table, tmp_path / "a.parquet")
    found, metrics, errors = texts(tmp_path, "a.parquet", (tmp_path / "a.parquet").read_bytes())
    if name == "note":
        assert (found, errors) == (["x", "y", "z"], [])
        return
    assert found == (["one", "three"] if name == "text" else ["x", "z"])
    assert errors[0]["error"] == f"field {name!r} has a value that cannot be read, or is not UTF-8"
    assert metrics["lost_bytes"] > 0


def test_a_value_of_a_column_with_a_dot_in_its_name_becomes_no_text_either(tmp_path: Path):
    column = pa.array([b"one", b"a\xff\xffb"]).view(pa.string())
    pq.write_table(pa.table({"data.body": column, "note": ["x", "y"]}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    found, _, errors = texts(tmp_path, "a.parquet", content, text_field="data.body")
    assert found == ["one"]
    assert errors[0]["error"].startswith("field 'data.body' has a value that cannot be read")


def test_a_wrong_byte_costs_its_row_or_its_document_in_any_encoding(tmp_path: Path):
    rows = [f'{{"text": "Größe {i}"}}' for i in range(500)]
    content = "\n".join(rows).encode("cp1252") + b'\n{"text": "\x81"}\n{"text": "last"}\n'
    found, metrics, errors = texts(tmp_path, "a.jsonl", content, encoding="cp1252")
    assert len(found) == 501
    assert [error["error"] for error in errors] == ["the record has a lone surrogate, so it is not Unicode"]
    (tmp_path / "in" / "a.jsonl").unlink()
    size = 40_000
    _, metrics, errors = texts(tmp_path, "b.txt", b"\x81" + b"y" * size, encoding="cp1252")
    assert [error["error"] for error in errors] == ["not CP1252"]
    assert metrics["lost_bytes"] > size


def test_utf_16_is_read_or_named_whatever_it_is_packed_in(tmp_path: Path):
    packed = gzip.compress("id,text\n1,eins\n".encode("utf-16"))
    found, _, errors = texts(tmp_path, "a.csv.gz", packed)
    assert (found, errors) == (["eins"], [])
    (tmp_path / "in" / "a.csv.gz").unlink()
    lines = '{"text": "eins"}\n{"text": "zwei"}\n'.encode("utf-16")
    _, _, errors = texts(tmp_path, "a.jsonl", lines)
    assert [error["error"] for error in errors] == ["lines of JSON in UTF-16: set encoding to utf-16"]
    found, _, errors = texts(tmp_path, "a.jsonl", lines, encoding="utf-16")
    assert found == ["eins", "zwei"]
    # Beside it there is one in UTF-8.
    assert [error["error"] for error in errors] == ["not in its encoding: UnicodeError"]


def test_ids_that_nobody_asked_for_cost_no_document(tmp_path: Path):
    rows = [{"text": "a", "id": 1.0}, {"text": "b", "id": {"$oid": "5"}}, {"text": "c", "id": 2.5}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found, _, errors = texts(tmp_path, "a.jsonl", content)
    assert (found, errors) == (["a", "b", "c"], [])
    content = content.replace(b'"id"', b'"key"')
    _, _, errors = texts(tmp_path, "a.jsonl", content, id_field="key")
    assert [error["error"] for error in errors] == [
        "field 'key' is dict, not a name or number: set id_field to another one",
        "field 'key' is float, not a name or number: set id_field to another one",
    ]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_two_columns_with_the_text_are_an_error_and_two_others_are_none(tmp_path: Path, kind: str):
    for names, read in ((["text", "text"], False), (["text", "id", "id"], False), (["text", "n", "n"], True)):
        table = pa.Table.from_arrays([pa.array([name]) for name in names], names=names)
        path = tmp_path / f"a.{kind}"
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        found, _, errors = texts(tmp_path, f"a.{kind}", path.read_bytes())
        assert found == (["text"] if read else [])
        assert [error["error"] for error in errors] == (
            [] if read else [f"a table with two columns {names[1]!r}"]
        )


def test_a_dataset_is_read_as_far_as_is_asked_for_and_its_bad_rows_are_told(tmp_path: Path):
    folder = tmp_path / "rows"
    folder.mkdir()
    lines = [json.dumps({"text": f"number {i}"}) for i in range(50)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    rows, _, _ = run(tmp_path / "out", Source(path=f"dataset:{folder}", max_rows=5))
    assert [row["text"] for row in rows] == [f"number {i}" for i in range(5)]
    # More than pyarrow reads at once, so that the beginning is read before the fault is found.
    long = [json.dumps({"text": f"{i} {PROSE}"}) for i in range(40_000)]
    (folder / "train.jsonl").write_text("\n".join([*long, "{oops", *lines]))
    with pytest.raises(
        InputError, match=r"cannot be read after row [1-9]\d+: .*Of files that are given as a path"
    ):
        run(tmp_path / "again", Source(path=f"dataset:{folder}"))


def test_pages_that_are_small_enough_are_not_cut(tmp_path: Path):
    pages = [b"a" * 60_000, b"b" * 95_000, b"c" * 130_000]
    (tmp_path / "a.txt").write_bytes(b"\f\n".join(pages))
    source = Source(path=str(tmp_path / "a.txt"), cut="pages")
    rows, _, errors = run(tmp_path / "out", source, max_document_bytes=100_000)
    sizes = [len(row["text"].strip()) for row in rows]
    assert sizes[:2] == [60_000, 95_000]
    assert max(sizes) <= 100_000
    assert sum(sizes) == 285_000
    assert not errors


def test_no_document_that_a_text_is_cut_into_is_larger_than_it_may_be(tmp_path: Path):
    content = ("word " * 20_000 + "\n\n").encode() * 3
    (tmp_path / "a.txt").write_bytes(content)
    rows, _, errors = run(
        tmp_path / "out", Source(path=str(tmp_path / "a.txt"), cut="paragraphs"), max_document_bytes=10_000
    )
    assert max(len(row["text"]) for row in rows) <= 10_000
    assert sum(row["text"].count("word") for row in rows) == 60_000
    assert not errors


def test_a_pattern_of_any_folders_follows_no_link_in_circles(tmp_path: Path):
    files = ("a.txt", "deep/er/b.txt", "deep/c.md", ".hidden/d.txt", "deep/.conf/e.txt", "data1.txt")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in ("self", "deep/up", "deep/back"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "latest").symlink_to(tmp_path / "deep" / "er")
    for pattern, names in {
        "**/*.txt": {"a.txt", "data1.txt", "deep/er/b.txt", "latest/b.txt"},
        "deep/**/b.txt": {"deep/er/b.txt"},
        "**": {"a.txt", "data1.txt", "deep/er/b.txt", "deep/c.md", "latest/b.txt"},
        "**/latest/*.txt": {"latest/b.txt"},
        "deep/**/.conf/*.txt": {"deep/.conf/e.txt"},
        "deep/*/**": {"deep/er/b.txt"},
        "data**.txt": {"data1.txt"},
    }.items():
        listed = files_of(Source(path=f"{tmp_path}/{pattern}"))
        found = {path.relative_to(tmp_path).as_posix() for path in listed.paths}
        # Through a link that leads back up everything is there once more, and no more often.
        assert {name for name in found if not {"up", "back", "self"} & set(name.split("/"))} == names, pattern
        assert max(name.count("self") + name.count("up") + name.count("back") for name in found) <= 1, pattern
        assert listed.skipped == (), pattern


def test_a_table_of_numbers_beside_text_is_left_out_whatever_its_format(tmp_path: Path):
    pq.write_table(pa.table({"n": list(range(10_000))}), tmp_path / "n.parquet")
    _, metrics, errors = texts(tmp_path, "n.parquet", (tmp_path / "n.parquet").read_bytes())
    assert not errors
    assert sum(metrics["skipped"].values()) == 1


def test_one_conversation_in_a_file_of_json_is_one(tmp_path: Path):
    (tmp_path / "in").mkdir()
    talk = {"id": "c", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "in" / "c.json").write_text(json.dumps(talk))
    (tmp_path / "out").mkdir()
    config = ReadConversationsConfig(sources=(Source(path=str(tmp_path / "in")),))
    assert read_conversations.fn(config, out=tmp_path / "out")["documents"] == 1


def test_utf_16_is_never_cut_between_the_bytes_of_a_letter(tmp_path: Path):
    whole = ("zwei Wörter\n\n" * 4000).encode("utf-16")
    found, _, errors = texts(tmp_path, "a.txt", whole, cut="paragraphs")
    assert "".join(found) == whole.decode("utf-16")
    assert not errors


def test_a_comment_in_code_is_no_heading(tmp_path: Path):
    page = "# One\ntext\n```sh\n# comment\n```\n# Two\ntext\n"
    found, _, _ = texts(tmp_path, "a.md", page.encode(), cut="headings")
    assert [text.splitlines()[0] for text in found] == ["# One", "# Two"]


@pytest.mark.parametrize(
    "more",
    [
        "<svg>" + "<path d='M0 0'/>" * 3000 + "</svg>",
        "<script>" + "for (i=0;i<n;i++) a<b;" * 2000 + "</script>",
        "<!-- " + "<div>" * 3000 + " -->",
        "<p>a<p>b" * 3000,
        "<div><b></div>" * 3000,
    ],
)
def test_ordinary_pages_are_read(more: str):
    assert "people of this country" in text_of_page(
        f"<html><body><p>{PROSE}</p>{more}</body></html>".encode()
    )


@pytest.mark.parametrize(
    "page",
    [
        "</x>" * 5000 + "<div>" * 5000,
        "<div></x>" * 5000,
        "<select>" + "<option>a" * 20_000,
        "<!-->" + "<div>" * 5000,
        "<!--->" + "<div>" * 5000,
        "<!-- a --!>" + "<div>" * 5000,
        "<math><title>" + "<div>" * 5000,
        "<i><b>" * 3000,
    ],
)
def test_pages_that_would_take_minutes_are_refused(page: str):
    with pytest.raises(BadPage):
        text_of_page(page.encode())


def test_dates_are_kept_where_they_can_be(tmp_path: Path):
    table = pa.table({"text": ["one"], "at": [datetime.date(1790, 1, 8)]})
    pq.write_table(table, tmp_path / "a.parquet")
    found, _, _ = texts(tmp_path, "a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert found == ["one"]
