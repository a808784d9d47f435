"""What people's files become: text, pages, tables and lists of rows, and large files that are cut into documents."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InputError
from tasks.text.cut import cut_text
from tasks.text.html import BadPage, text_of_page
from tasks.text.listing import list_source, typical_shard_bytes
from tasks.text.sources import IngestConfig, Source, kind_of
from tests.tasks.text.test_ingest import run


def texts_of(tmp_path: Path, name: str, content: str | bytes, **fields) -> list[str]:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    rows, _, _ = run(tmp_path / "out", Source(path=str(folder), **fields))
    return [row["text"] for row in rows]


@pytest.mark.parametrize(
    "name", ["a.md", "a.rst", "a.py", "A.TXT", "a.c", "a.txt.gz", "a.md.gz", "a.org", "a.R"]
)
def test_text_is_read_as_it_is(tmp_path: Path, name: str):
    content = b"# Title\n\nif x < 1: pass\n"
    packed = gzip.compress(content) if name.endswith(".gz") else content
    assert texts_of(tmp_path, name, packed) == [content.decode()]


def test_utf_16_with_a_mark_is_read(tmp_path: Path):
    assert texts_of(tmp_path, "a.txt", "Grüße".encode("utf-16")) == ["Grüße"]


PAGE = """<!DOCTYPE html><html><head><title>T</title><style>p {}</style></head><body>
<nav><a href="/">Home</a><a href="/a">All articles</a></nav>
<main><h1>How bread rises</h1><p>%s</p><ul><li>flour<li>water</ul><script>track()</script></main>
<footer>Imprint</footer></body></html>"""


def test_a_page_becomes_its_main_text(tmp_path: Path):
    words = "Yeast eats sugar &amp; breathes. " * 20
    (text,) = texts_of(tmp_path, "a.html", PAGE % words)
    assert "How bread rises" in text
    assert "Yeast eats sugar & breathes." in text
    assert not any(other in text for other in ("All articles", "track()", "Imprint", "<p>", "p {}"))
    assert "brot" in text_of_page(b"<p>brot und salz")
    assert text_of_page(b'<meta charset="latin-1"><p>Gr\xfc\xdfe aus K\xf6ln') == "Grüße aus Köln"


@pytest.mark.parametrize("tag", ["div", "b", "table", "span"])
def test_a_page_nested_without_end_is_an_error_at_once(tag: str):
    with pytest.raises(BadPage, match="inside each other"):
        text_of_page(f"<{tag}>".encode() * 100_000)
    many = b"<p>one<li>two<tr><td>three<br>" * 20_000
    assert "one" in text_of_page(many)


def test_tables_in_the_ways_of_spreadsheets(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for name, separator in (("a.csv", ","), ("b.tsv", "\t"), ("c.csv", ";")):
        with (tmp_path / "in" / name).open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file, delimiter=separator)
            writer.writerows(
                [["id", "body"], ["1", f"two\nlines; with{separator} and “quotes”"], ["2", "short"]]
            )
    rows, metrics, errors = run(tmp_path / "out", Source(path=str(tmp_path / "in")))
    assert [row["own_id"] for row in rows] == ["1", "2"] * 3
    assert rows[0]["text"].startswith("two\nlines; with,")
    assert metrics["text_fields"] == {"body": 6}
    assert errors == []


def test_bad_rows_of_a_table_cost_themselves(tmp_path: Path):
    table = b'text,n\ngood,1\nshort\nbad \xff,2\n"wrong" quote,3\nlast,4\n"never closed,5\nlost,6\n'
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_bytes(table)
    rows, metrics, errors = run(tmp_path / "out", Source(path=str(tmp_path / "in")))
    assert [row["text"] for row in rows] == ["good", "last"]
    assert [error["where"] for error in errors] == ["a.csv:1", "a.csv:2", "a.csv:3", "a.csv:5"]
    assert "1 values for 2 columns" in errors[0]["error"]
    assert metrics["lost_bytes"] >= len(b'"never closed,5\nlost,6\n')


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ([{"text": "a"}, {"text": "b"}], ["a", "b"]),
        ({"data": [{"content": "a"}], "version": 1}, ["a"]),
        ({"document": "a", "tags": ["x"]}, ["a"]),
    ],
)
def test_json_is_a_list_of_rows_or_one(tmp_path: Path, value, texts: list[str]):
    assert texts_of(tmp_path, "a.json", json.dumps(value)) == texts


def test_the_field_with_the_text_is_taken_where_there_is_one(tmp_path: Path):
    rows = [
        {"body": "a", "title": "t"},
        {"text": "b", "body": "c"},
        {"body": "d", "content": "e"},
        {"title": "f"},
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, metrics, errors = run(tmp_path / "out", Source(path=str(tmp_path / "in")))
    assert [row["text"] for row in found] == ["a", "b"]
    assert metrics["text_fields"] == {"body": 1}
    assert (
        "its fields: 'body', 'content'; say 'content' or 'body' in ingest.sources as text_field"
        in errors[0]["error"]
    )
    assert "its fields: 'title'" in errors[1]["error"]
    found, _, _ = run(tmp_path / "again", Source(path=str(tmp_path / "in"), text_field="title"))
    assert [row["text"] for row in found] == ["t", "f"]


def test_a_table_alone_without_text_says_its_columns(tmp_path: Path):
    with pytest.raises(InputError, match=r"no document.*'day', 'price'"):
        texts_of(tmp_path, "a.csv", "day,price\n1,2\n")


def test_a_large_file_is_cut_at_paragraphs(tmp_path: Path):
    paragraphs = [f"Paragraph {i} says something of its own.\nIn two lines.\n\n" for i in range(8_000)]
    texts = texts_of(tmp_path, "a.txt", "".join(paragraphs))
    assert "".join(texts) == "".join(paragraphs)
    assert all(text.endswith("\n\n") for text in texts)
    sizes = [len(text) for text in texts[:-1]]
    assert min(sizes) >= 4_000
    assert max(sizes) <= 48_100
    assert 8_000 < sum(sizes) / len(sizes) < 32_000
    # Text that is added in front changes the documents there, and no other.
    more = texts_of(tmp_path, "a.txt", "A new beginning.\n\n" * 300 + "".join(paragraphs))
    assert len(set(texts) - set(more)) <= 2


def test_a_large_file_is_cut_at_its_pages(tmp_path: Path):
    pages = [f"Page {i}\n" + "words and words\n\n" * 300 for i in range(80)]
    assert texts_of(tmp_path, "a.txt", "\f".join(pages)) == pages
    marked = "<|endoftext|>\n".join(pages)
    assert texts_of(tmp_path, "a.txt", marked) == pages
    small = "one\ftwo"
    assert texts_of(tmp_path, "a.txt", small) == [small]
    assert texts_of(tmp_path, "a.txt", small, cut="pages") == ["one", "two"]


def test_a_file_is_cut_as_the_recipe_says(tmp_path: Path):
    chapters = "# One\ntext\n\n## Two\nmore\n\n# Three\nend\n"
    assert texts_of(tmp_path, "a.md", chapters, cut="headings") == [
        "# One\ntext\n\n",
        "## Two\nmore\n\n",
        "# Three\nend\n",
    ]
    lines = "".join(f"line {i}\n" for i in range(1_000))
    pieces = texts_of(tmp_path, "a.md", lines, cut="lines", cut_bytes=500)
    assert "".join(pieces) == lines
    assert len(pieces) > 8
    assert texts_of(tmp_path, "a.md", lines * 40, cut="none") == [lines * 40]


def test_a_bad_byte_costs_its_document_only(tmp_path: Path):
    good = "A line of good text.\n\n" * 20_000
    content = good.encode() + b"\xff\n\n" + good.encode()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(content)
    rows, _, errors = run(tmp_path / "out", Source(path=str(tmp_path / "in")))
    assert len(errors) == 1
    assert sum(len(row["text"]) for row in rows) > 0.9 * len(content)


@given(
    st.text(st.sampled_from("ab \n\f#日é"), max_size=400),
    st.sampled_from(["headings", "paragraphs", "lines"]),
    st.integers(100, 200),
)
def test_pieces_together_are_the_file(text: str, how: str, cut_bytes: int):
    pieces = list(cut_text(io.BytesIO(text.encode() * 20), how, cut_bytes, 10_000))
    assert b"".join(pieces) == text.encode() * 20
    for piece in pieces:
        piece.decode()


@given(st.lists(st.text(st.sampled_from("ab \n日"), max_size=50), min_size=1, max_size=8))
def test_pages_together_are_the_file(pages: list[str]):
    text = "\f".join(pages)
    pieces = [piece.decode() for piece in cut_text(io.BytesIO(text.encode()), "pages", 100, 10_000)]
    assert pieces == pages


def test_one_endless_line_is_cut_between_characters():
    text = "日本語" * 100_000
    pieces = list(cut_text(io.BytesIO(text.encode()), "paragraphs", 1_000, 10_000_000))
    assert b"".join(pieces).decode() == text
    assert len(pieces) > 3
    assert all(piece.decode() for piece in pieces if piece)


def test_small_text_has_shards_to_share(tmp_path: Path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"{i} and more\n" * 40_000)
    config = IngestConfig(sources=(Source(path=str(tmp_path), cut="none"),))
    listings = [list_source(source) for source in config.sources]
    assert typical_shard_bytes(config, listings) == 1_000_000
    _, metrics, _ = run(tmp_path / "out", *config.sources)
    assert metrics["shards"] >= 8
    assert typical_shard_bytes(config.model_copy(update={"shard_bytes": 5_000}), listings) == 5_000


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text"),
        ("a.csv.gz", "table"),
        ("a.b.HTML", "html"),
        ("a.parquet.gz", None),
        ("a.png", None),
        ("gz", None),
    ],
)
def test_kinds(name: str, kind: str | None):
    found = kind_of(Path(name))
    assert (found.of if found else None) == kind


def test_a_share_of_the_documents_is_chosen_by_their_text(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(400):
        (folder / f"{i}.txt").write_text(f"Document {i} says something.")
    half, metrics, _ = run(tmp_path / "half", Source(path=str(folder), share=0.5))
    assert 150 < len(half) < 250
    assert metrics["sources"]["text"]["not taken"] == 400 - len(half)
    tenth, _, _ = run(tmp_path / "tenth", Source(path=str(folder), share=0.1))
    assert {row["id"] for row in tenth} <= {row["id"] for row in half}
    (folder / "00 first.txt").write_text("What comes before them changes none of it.")
    again, _, _ = run(tmp_path / "again", Source(path=str(folder), share=0.5))
    assert {row["text"] for row in again} - {row["text"] for row in half} <= {
        (folder / "00 first.txt").read_text()
    }
    assert {row["text"] for row in half} <= {row["text"] for row in again}
