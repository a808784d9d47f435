"""Archives of the web, Arrow, mail, PDF and office files, other encodings, fields of fields, checkouts."""

import bz2
import gzip
import io
import json
import zipfile
import zlib
from pathlib import Path

import matplotlib as mpl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model.errors import InputError, StageFailed
from tasks.engine.sources import SourceDigests
from tasks.text import office, readers
from tasks.text.listing import list_source
from tasks.text.pieces import TextPiece, list_pieces
from tasks.text.readers import read_piece
from tasks.text.records import from_mapping
from tasks.text.sources import IngestConfig, Source
from tests.tasks.text.test_ingest import run

SENTENCE = "Bread rises since yeast eats sugar, and breathes. "
HTML = f"<html><body><nav><a href='/'>Home</a></nav><main><p>{SENTENCE * 12}</p></main></body></html>"


def read(tmp_path: Path, files: dict[str, bytes], **fields) -> tuple[list[dict], dict, list[dict]]:
    for name, content in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return run(tmp_path / "out", Source(path=str(tmp_path / "in"), **fields))


def archive(*, packed: bool) -> bytes:
    """Three pages, one of them missing on the server, a picture, a plain text, and the text of a page."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    content = io.BytesIO()
    writer = WARCWriter(content, gzip=packed)
    for number, (status, kind, body) in enumerate(
        [
            ("200 OK", "text/html; charset=utf-8", HTML.encode()),
            ("404 Not Found", "text/html", b"<p>gone</p>"),
            ("200 OK", "image/png", b"\x89PNG"),
            ("200 OK", "text/plain", b"plain words"),
            ("200 OK", "text/html", HTML.replace("Bread", "Brot").encode()),
        ]
    ):
        headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
        record = writer.create_warc_record(
            f"http://example.org/{number}", "response", payload=io.BytesIO(body), http_headers=headers
        )
        writer.write_record(record)
    text = io.BytesIO(SENTENCE.encode())
    writer.write_record(writer.create_warc_record("http://example.org/wet", "conversion", payload=text))
    return content.getvalue()


@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura"])
@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.wet.gz", "a.warc.bz2"])
def test_archives_of_the_web(tmp_path: Path, name: str, extractor: str):
    content = archive(packed=name.endswith(".gz"))
    content = bz2.compress(content) if name.endswith(".bz2") else content
    rows, metrics, errors = read(tmp_path, {name: content}, extractor=extractor)
    assert [row["own_id"][-3:] for row in rows] == ["g/0", "g/3", "g/4", "wet"]
    assert rows[0]["text"].strip() == (SENTENCE * 12).strip()
    assert "Brot" in rows[2]["text"]
    assert rows[3]["text"] == SENTENCE
    assert json.loads(rows[0]["metadata"])["url"] == "http://example.org/0"
    assert errors == []
    assert metrics["skipped"] == {"an answer of type image/png": 1, "an answer with HTTP status 404": 1}


@pytest.mark.parametrize("length", [8, 10, 12])
def test_an_archive_that_is_cut_in_its_first_line_is_named(tmp_path: Path, length: int):
    files = {"a.warc": archive(packed=False)[:length], "b.txt": b"words"}
    _, metrics, _ = read(tmp_path, files)
    assert metrics["skipped"] == {"an archive in which no page is found": 1}


def test_a_page_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    large = f"<html><body><main>{f'<p>{SENTENCE}</p>' * 20_000}</main></body></html>".encode()
    monkeypatch.setattr("tasks.text.html._SECONDS", 0.01)
    rows, _, errors = read(tmp_path, {"a.html": large, "b.txt": b"words"}, extractor="trafilatura")
    assert [row["text"] for row in rows] == ["words"]
    assert errors[0]["error"] == "HTML whose text takes longer than 0.01 seconds to find"


def ends_whole(packed: bytes) -> bool:
    """Whether compressed members, one after another, end with one of them."""
    try:
        gzip.decompress(packed)
    except (EOFError, zlib.error):
        return False
    return True


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(1, 600), packed=st.booleans())
def test_a_torn_archive_is_named(tmp_path_factory: pytest.TempPathFactory, cut: int, packed: bool):
    whole = archive(packed=packed)
    torn = whole[:-cut]
    folder = tmp_path_factory.mktemp("torn")
    other = {"b.txt": SENTENCE.encode() * 100}
    rows, metrics, errors = read(folder, {"a.warc.gz" if packed else "a.warc": torn, **other})
    texts = [row["text"] for row in rows]
    # What stands before the tear is read, as it was; the rest is named, unless the end fell exactly between two records.
    wanted = [SENTENCE * 12, "plain words", SENTENCE * 12, SENTENCE]
    assert [text.strip().replace("Brot", "Bread") for text in texts[:-1]] == [
        text.strip() for text in wanted
    ][: len(texts) - 1]
    assert errors or metrics["documents"] - 1 == len(wanted) or not packed or ends_whole(torn)


def test_arrow_as_a_file_and_as_a_stream(tmp_path: Path):
    table = pa.table({"text": ["one", "two", None], "n": [1, 2, 3]})
    files = {}
    for name, opened in (("a.arrow", pa.ipc.new_file), ("b.arrow", pa.ipc.new_stream)):
        sink = pa.BufferOutputStream()
        with opened(sink, table.schema) as writer:
            writer.write_table(table)
        files[name] = sink.getvalue().to_pybytes()
    rows, _, errors = read(tmp_path, {**files, "c.arrow": files["a.arrow"][:-20]}, text_field="text")
    assert [row["text"] for row in rows] == ["one", "two"] * 2
    assert [error["where"] for error in errors] == ["a.arrow:2", "b.arrow:2", "c.arrow:0"]


MESSAGE = b"""From ann@example.org Mon Jan  1 00:00:00 2024
From: ann@example.org
Subject: =?utf-8?q?Br=C3=B6tchen?=
Message-ID: <1@example.org>
Content-Type: %s; charset=latin-1

%s

"""


def test_a_mailbox_is_its_messages(tmp_path: Path):
    plain = MESSAGE % (b"text/plain", "Grüße".encode("latin-1"))
    page = MESSAGE % (b"text/html", HTML.encode())
    rows, _, errors = read(tmp_path, {"a.mbox": plain + page, "b.eml": plain.partition(b"\n")[2]})
    assert [row["text"] for row in rows][0::2] == ["Brötchen\n\nGrüße"] * 2
    assert rows[1]["text"].startswith("Brötchen\n\nBread rises")
    assert "ann@" not in "".join(row["text"] + row["metadata"] for row in rows)
    assert rows[0]["own_id"] == "<1@example.org>"
    assert errors == []


def docx() -> bytes:
    """The least that Word opens (ECMA-376, part 2)."""
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    of_package = "http://schemas.openxmlformats.org/package/2006"
    office_type = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{of_package}/content-types"><Default Extension="rels" ContentType='
        f'"application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/word/document.xml" '
        f'ContentType="{main}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{of_package}/relationships"><Relationship Id="rId1" Type="{office_type}" '
        'Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{word}"><w:body><w:p><w:r><w:t>{SENTENCE}</w:t></w:r></w:p>'
        "<w:p><w:r><w:t>Second paragraph</w:t></w:r></w:p></w:body></w:document>",
    }
    return packed(parts)


def packed(parts: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, part in parts.items():
            file.writestr(name, part)
    return content.getvalue()


def epub() -> bytes:
    return packed(
        {
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
            "OEBPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="b" href="two.xhtml"/>'
            '<item id="a" href="one.xhtml"/></manifest><spine><itemref idref="a"/><itemref idref="b"/></spine></package>',
            "OEBPS/one.xhtml": "<html><body><p>Chapter one</p></body></html>",
            "OEBPS/two.xhtml": "<html><body><p>Chapter two</p></body></html>",
        }
    )


def pptx() -> bytes:
    from pptx import Presentation

    show = Presentation()
    slide = show.slides.add_slide(show.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = "On bread", SENTENCE
    content = io.BytesIO()
    show.save(content)
    return content.getvalue()


def test_pdf_and_office_files_are_converted(tmp_path: Path):
    pdf = (Path(mpl.get_data_path()) / "images" / "matplotlib.pdf").read_bytes()
    files = {
        "a.docx": docx(),
        "b.pptx": pptx(),
        "c.epub": epub(),
        "d.pdf": pdf,
        "e.pdf": b"%PDF-1.4 torn",
        "f.docx": b"PK",
    }
    files["g.docx"] = packed({"word/document.xml": "a" * 2_000_000_0})
    rows, _, errors = read(tmp_path, files)
    texts = {row["id"].rpartition("/")[2]: row["text"] for row in rows}
    assert SENTENCE.strip() in texts["a.docx"]
    assert "Second paragraph" in texts["a.docx"]
    assert texts["b.pptx"].startswith("On bread\n" + SENTENCE.strip())
    assert texts["c.epub"].index("Chapter one") < texts["c.epub"].index("Chapter two")
    assert {error["where"] for error in errors} >= {"e.pdf", "f.docx", "g.docx"}
    assert all(
        "cannot be converted" in error["error"] for error in errors if error["where"] in ("e.pdf", "f.docx")
    )


def test_what_converts_a_file_is_in_its_piece_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, content in {"docs/a.docx": docx(), "text/b.txt": b"plain"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    sources = tuple(Source(name=name, path=str(tmp_path / name)) for name in ("docs", "text"))

    def pieces() -> dict[str, dict]:
        found = list_pieces(IngestConfig(sources=sources), SourceDigests()).each
        return {piece["source"]["name"]: piece for piece in found}

    before = pieces()
    assert before["docs"]["converters"] == [f"mammoth {office.version_of('mammoth')}"]
    assert "converters" not in before["text"]
    monkeypatch.setitem(office.LIBRARIES, ".docx", "nobody-has-this")
    with pytest.raises(InputError, match=r"docx needs pip install 'scratchlm\[office\]'"):
        list_source(sources[0])


@pytest.mark.parametrize("missing", ["mammoth", "pebble"])
def test_a_computer_with_other_converters_reads_no_such_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
):
    """What the piece names is in its key, and the key must not come to have two contents."""
    (tmp_path / "a.docx").write_bytes(docx())
    config = IngestConfig(sources=(Source(path=str(tmp_path)),))
    (values,) = list_pieces(config, SourceDigests()).each
    piece = TextPiece.model_validate(values)
    ((_, record),) = read_piece(config, piece, from_mapping)
    assert record.text
    own = {name: office.version_of(name) for name in ("mammoth", "pebble")}
    monkeypatch.setattr(readers, "version_of", {**own, missing: None}.get)
    with pytest.raises(StageFailed, match=f"{missing} is missing"):
        list(read_piece(config, piece, from_mapping))


def test_a_library_that_cannot_be_imported_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.docx").write_bytes(docx())
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "mammoth.py").write_text("raise ImportError('libxyz.so is not there')")
    monkeypatch.syspath_prepend(str(tmp_path / "library"))
    office._pool.cache_clear()
    try:
        with pytest.raises(StageFailed, match=r"mammoth is not whole on this computer \(libxyz"):
            office.text_of_file(".docx", tmp_path / "a.docx", 10_000)
    finally:
        office._pool().stop()
        office._pool.cache_clear()


def test_bz2_and_other_encodings(tmp_path: Path):
    latin = {
        "a.txt": "Grüße aus Köln".encode("latin-1"),
        "b.txt.bz2": bz2.compress("Straße".encode("latin-1")),
        "c.jsonl": '{"text": "süß"}\n'.encode("latin-1"),
        "d.csv": "text,n\nöde,1\n".encode("latin-1"),
        "e.json": '[{"text": "Äpfel"}]'.encode("latin-1"),
    }
    rows, _, errors = read(tmp_path / "latin", latin, encoding="latin-1")
    assert [row["text"] for row in rows] == ["Grüße aus Köln", "Straße", "süß", "öde", "Äpfel"]
    assert errors == []
    rows, _, _ = read(tmp_path / "wide", {"a.txt": "日本語\nの文".encode("utf-16-le")}, encoding="utf-16-le")
    assert rows[0]["text"] == "日本語\nの文"
    rows, _, errors = read(tmp_path / "wrong", {"a.txt": b"good", "b.txt": b"\x81\xff"}, encoding="shift_jis")
    assert [row["text"] for row in rows] == ["good"]
    assert errors[0]["error"].startswith("not SHIFT_JIS")
    with pytest.raises(ValidationError, match="no encoding that Python knows"):
        Source(path="x", encoding="klingon")


def test_a_field_of_a_field_and_so_many_rows(tmp_path: Path):
    lines = [{"data": {"body": f"text {i}", "lang": "en"}, "meta": {"id": i}} for i in range(5)]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    fields = {"text_field": "data.body", "id_field": "meta.id", "max_rows": 3}
    rows, _, errors = read(tmp_path, {"a.jsonl": content, "b.jsonl.gz": gzip.compress(content)}, **fields)
    assert [row["text"] for row in rows] == ["text 0", "text 1", "text 2"] * 2
    assert [row["own_id"] for row in rows[:3]] == ["0", "1", "2"]
    assert json.loads(rows[0]["metadata"]) == {"data": {"lang": "en"}, "meta": {}}
    assert errors == []


def test_of_a_checkout_what_is_copied_into_it_or_generated_is_left_out(tmp_path: Path):
    names = ["src/a.py", "vendor/b.py", "web/node_modules/c.js", "web/d.min.js", "e_pb2.py", "README.md"]
    files = dict.fromkeys(names, b"text")
    rows, metrics, _ = read(tmp_path, files)
    assert len(rows) == 6
    (tmp_path / "in" / ".git").mkdir()
    rows, metrics, _ = read(tmp_path, files)
    assert {row["id"] for row in rows} == {"text/README.md", "text/src/a.py"}
    assert metrics["skipped"] == {"copied into the checkout": 2, "generated": 2, "hidden": 1}


def warc_of(*answers: tuple[list[tuple[str, str]], bytes], packed: bool = False) -> bytes:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    content = io.BytesIO()
    writer = WARCWriter(content, gzip=packed)
    for number, (headers, body) in enumerate(answers):
        told = StatusAndHeaders("200 OK", [("Content-Type", "text/html"), *headers], protocol="HTTP/1.1")
        url = f"http://example.org/{number}"
        writer.write_record(
            writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=told)
        )
    return content.getvalue()


PAGES = [([], HTML.replace("Bread", word).encode()) for word in ("First", "Second", "Third")]


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", b"plain"), ("br", b"\xff\xff not brotli"), ("zstd", b"\x00"), ("unheard-of", b"\x01\x02")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_that_cannot_be_decoded_costs_itself(
    tmp_path: Path, encoding: str, body: bytes, packed: bool
):
    odd = ([("Content-Encoding", encoding)], body)
    content = warc_of(PAGES[0], odd, *PAGES[1:], packed=packed)
    rows, _, errors = read(tmp_path, {"a.warc.gz" if packed else "a.warc": content})
    found = [
        next(word for word in ("First", "Second", "Third") if word in row["text"])
        for row in rows
        if "rises" in row["text"]
    ]
    assert found == ["First", "Second", "Third"]
    assert len(rows) + len(errors) == 4


@pytest.mark.parametrize("coding", ["gzip", "deflate", "chunked"])
def test_answers_are_decoded_as_a_browser_does(tmp_path: Path, coding: str):
    body = HTML.encode()
    if coding == "chunked":
        halves = (body[:100], body[100:])
        body = b"".join(b"%x\r\n%b\r\n" % (len(half), half) for half in halves) + b"0\r\n\r\n"
        headers = [("Transfer-Encoding", "chunked")]
    else:
        body = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
        headers = [("Content-Encoding", coding)]
    rows, _, errors = read(tmp_path, {"a.warc": warc_of((headers, body))})
    assert "Bread rises" in rows[0]["text"]
    assert errors == []


def test_what_stands_before_a_damaged_member_is_read(tmp_path: Path):
    whole = warc_of(*PAGES, packed=True)
    third = [at for at in range(len(whole)) if whole.startswith(b"\x1f\x8b\x08", at)][2]
    damaged = whole[: third + 30] + bytes(40) + whole[third + 70 :]
    rows, _, errors = read(tmp_path, {"a.warc.gz": damaged, "b.txt": SENTENCE.encode() * 90})
    assert sum("First" in row["text"] or "Second" in row["text"] for row in rows) == 2
    assert errors


def test_a_damaged_stream_of_bzip2_is_named(tmp_path: Path):
    streams = [
        bz2.compress("".join(f'{{"text": "row {i} {j}"}}\n' for j in range(50)).encode()) for i in range(6)
    ]
    streams[3] = streams[3][:20] + bytes(20) + streams[3][40:]
    other = {"b.txt": SENTENCE.encode() * 400}
    rows, _, errors = read(tmp_path / "damaged", {"a.jsonl.bz2": b"".join(streams), **other})
    assert len(rows) == 151
    assert "unreadable after row 149" in errors[0]["error"]
    torn = b"".join(streams[:3])[:-60]
    rows, _, errors = read(tmp_path / "torn", {"a.jsonl.bz2": torn, **other})
    assert len(rows) < 151
    assert "EOFError" in errors[0]["error"]


def test_messages_of_every_kind_cost_at_most_themselves(tmp_path: Path):
    head = b"Subject: S\nContent-Type: text/plain%s\n"
    parts = (
        b'Subject: Two\nContent-Type: multipart/mixed; boundary="b"\n\n--b\nContent-Type: text/plain\n\nfirst part\n'
        b"--b\nContent-Type: text/plain\n\nsecond part\n--b\nContent-Type: message/rfc822\n\nSubject: Inner\n\nforwarded\n--b--\n"
    )
    alternative = (
        b'Subject: A\nContent-Type: multipart/alternative; boundary="b"\n\n--b\nContent-Type: text/plain\n\n \n'
        b"--b\nContent-Type: text/html\n\n" + HTML.encode() + b"\n--b--\n"
    )
    nested = b"Content-Type: message/rfc822\n\n" * 1_500 + b"Subject: x\n\ny\n"
    files = {
        "a.eml": head % b"" + b"Message-ID: <[5ab3c]@example.com>\n\nodd name\n",
        "b.eml": head % b"" + b"Message-ID: <>\n\nno name\n",
        "c.eml": head % b"" + b"\n" + "Grüße in UTF-8".encode(),
        "d.eml": head % b"; charset=nowhere" + b"\n" + "Straße".encode(),
        "e.eml": parts,
        "f.eml": alternative,
        "g.eml": nested,
        "h.txt": SENTENCE.encode() * 4_000,
    }
    rows, _, errors = read(tmp_path, files)
    texts = {row["id"].rpartition("/")[2]: row["text"] for row in rows}
    assert texts["a.eml"] == "S\n\nodd name"
    assert "no name" in texts["b.eml"]
    assert "Grüße in UTF-8" in texts["c.eml"]
    assert "Straße" in texts["d.eml"]
    assert [word in texts["e.eml"] for word in ("first part", "second part", "Inner", "forwarded")] == [
        True
    ] * 4
    assert "Bread rises" in texts["f.eml"]
    assert [error["where"] for error in errors] == ["g.eml"]


def test_a_torn_table_in_utf_16_is_named(tmp_path: Path):
    table = "text,n\nöde,1\nzwei,2\n".encode("utf-16")
    rows, _, errors = read(tmp_path, {"a.csv": table[:-3], "b.txt": SENTENCE.encode() * 90})
    assert rows[0]["text"] == "öde"
    assert "not UTF-16" in errors[0]["error"]


@pytest.mark.parametrize("encoding", ["shift_jis", "iso2022_jp", "gbk", "utf-16"])
def test_large_files_in_other_encodings_are_cut_between_characters(tmp_path: Path, encoding: str):
    text = "日本語の文書を書く。" * 30_000
    rows, _, errors = read(tmp_path, {"a.txt": text.encode(encoding)}, encoding=encoding)
    assert "".join(row["text"] for row in rows) == text
    assert len(rows) > 5
    assert errors == []
    lines = "".join(json.dumps({"text": "日本語"}, ensure_ascii=False) + "\n" for _ in range(3))
    rows, _, errors = read(tmp_path / "rows", {"a.jsonl": lines.encode(encoding)}, encoding=encoding)
    assert [row["text"] for row in rows] == ["日本語"] * 3


def test_odd_books_and_groups_of_shapes(tmp_path: Path):
    from pptx import Presentation

    show = Presentation()
    slide = show.slides.add_slide(show.slide_layouts[6])
    group = slide.shapes.add_group_shape()
    box = group.shapes.add_textbox(0, 0, 100, 100)
    box.text_frame.text = "inside a group"
    content = io.BytesIO()
    show.save(content)
    opf = (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="a" href="../text/chapter%20one.xhtml"/></manifest>'
        + "<spine>"
        + '<itemref idref="a"/>' * 300
        + "</spine></package>"
    )
    book = io.BytesIO()
    with zipfile.ZipFile(book, "w") as file:
        container = '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        file.writestr(
            "META-INF/container.xml",
            f'{container}<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        )
        file.writestr("OEBPS/book.opf", opf)
        page = '<?xml version="1.0" encoding="latin-1"?><html><body><p>Größe</p></body></html>'
        file.writestr("text/chapter one.xhtml", page.encode("latin-1"))
    bomb = packed({"word/document.xml": "<w:p/>" * 60_000_000})
    rows, _, errors = read(
        tmp_path, {"a.pptx": content.getvalue(), "b.epub": book.getvalue(), "c.docx": bomb}
    )
    assert [row["text"].strip() for row in rows] == ["inside a group", "Größe"]
    assert "far larger when it is unpacked" in errors[0]["error"]
