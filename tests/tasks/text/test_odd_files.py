"""Files as spreadsheets, browsers and databases write them: read, or said to be what they are, and never taken apart."""

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.text.html import BadPage, text_of_page
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
