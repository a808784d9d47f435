"""Every format, with a file of it damaged somewhere: nothing ends the reading, and what is lost is said."""

import bz2
import csv
import gzip
import io
import json
import mailbox
from email.message import EmailMessage
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from tests.tasks.text.test_more_formats import HTML, SENTENCE, archive, docx, epub, pptx, read

TEXTS = [f"{SENTENCE}{number} loaves were baked, and {number * 7919} eaten." for number in range(40)]


def table(separator: str) -> bytes:
    content = io.StringIO()
    csv.writer(content, delimiter=separator).writerows([("id", "text"), *enumerate(TEXTS)])
    return content.getvalue().encode()


def arrow() -> bytes:
    sink = io.BytesIO()
    content = pa.table({"text": TEXTS})
    with pa.ipc.new_file(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=8)
    return sink.getvalue()


def mbox(folder: Path) -> bytes:
    box = mailbox.mbox(folder / "box", create=True)
    for number, text in enumerate(TEXTS[:8]):
        message = EmailMessage()
        message["Subject"], message["Message-ID"] = f"loaf {number}", f"<{number}@example.org>"
        message.set_content(text)
        box.add(message)
    box.close()
    return (folder / "box").read_bytes()


def eml() -> bytes:
    message = EmailMessage()
    message["Subject"] = "bread"
    message.set_content(SENTENCE * 3)
    message.add_attachment(b"\0\1\2", maintype="image", subtype="png", filename="loaf.png")
    return message.as_bytes()


def whole_files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """A file of each format, and how many documents are in it."""
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    prose = "\n\n".join(TEXTS).encode()
    return {
        "a.txt": (prose, 1),
        "a.txt.gz": (gzip.compress(prose), 1),
        "a.txt.bz2": (bz2.compress(prose), 1),
        "a.md": (b"# Bread\n\n" + prose, 1),
        "a.rst": (b"Bread\n=====\n\n" + prose, 1),
        "a.py": (b'"""Bread."""\n\n' + b"loaves = 3  # of rye\n" * 20, 1),
        "a.html": (HTML.encode(), 1),
        "a.json": (json.dumps([{"text": text} for text in TEXTS]).encode(), len(TEXTS)),
        "a.jsonl.bz2": (bz2.compress(rows), len(TEXTS)),
        "a.csv": (table(","), len(TEXTS)),
        "a.tsv": (table("\t"), len(TEXTS)),
        "a.arrow": (arrow(), len(TEXTS)),
        "a.warc": (archive(packed=False), 4),
        "a.warc.gz": (archive(packed=True), 4),
        "a.mbox": (mbox(folder), 8),
        "a.eml": (eml(), 1),
        "a.epub": (epub(), 1),
    }


OF_OFFICE = {"a.docx": docx, "a.pptx": pptx}
NAMES = sorted(
    name
    for name in [
        "a.txt",
        "a.txt.gz",
        "a.txt.bz2",
        "a.md",
        "a.rst",
        "a.py",
        "a.html",
        "a.json",
        "a.jsonl.bz2",
        "a.csv",
        "a.tsv",
        "a.arrow",
        "a.warc",
        "a.warc.gz",
        "a.mbox",
        "a.eml",
        "a.epub",
    ]
)
DAMAGES = st.tuples(
    st.sampled_from(["flip", "cut", "zeros", "noise", "twice"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=300),
)


def damaged(content: bytes, damage: tuple[str, float, bytes]) -> bytes:
    kind, place, noise = damage
    at = int(place * len(content))
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ (1 << noise[0] % 8)]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    if kind == "twice":
        return content[:at] + content[at // 2 :]
    other = bytes(len(noise)) if kind == "zeros" else noise
    return content[:at] + other + content[at + len(other) :]


def check(
    folder: Path, name: str, content: bytes, n_documents: int, damage: tuple[str, float, bytes]
) -> None:
    """Nothing fails; what is kept, lost and left out is counted; the file beside it is read as ever."""
    broken = damaged(content, damage)
    rows, metrics, errors = read(folder, {name: broken, "b.txt": SENTENCE.encode() * 9})
    assert metrics["documents"] == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert sum(metrics["errors"].values()) == len(errors)
    assert all(row["text"].strip() for row in rows)
    assert [row["text"] for row in rows if row["id"].startswith("text/b.txt")] == [SENTENCE * 9]
    own = len(rows) - 1
    assert all(error["where"].startswith(name) for error in errors)
    # Where documents are missing, something is said. Of these formats a damaged place can join two of them to one.
    told = len(errors) + sum(metrics["skipped"].values())
    if own < n_documents and name not in ("a.csv", "a.tsv", "a.mbox", "a.warc"):
        assert told
    if not own:
        assert told


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_damage_costs_at_most_its_file_and_is_said(
    tmp_path_factory: pytest.TempPathFactory, name: str, damage: tuple[str, float, bytes]
):
    folder = tmp_path_factory.mktemp("damaged")
    content, n_documents = whole_files(folder)[name]
    check(folder / name, name, content, n_documents, damage)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGES)
@pytest.mark.parametrize("name", [*OF_OFFICE, "a.pdf"])
def test_damage_of_an_office_file_is_said(
    tmp_path_factory: pytest.TempPathFactory, name: str, damage: tuple[str, float, bytes]
):
    content = OF_OFFICE[name]() if name in OF_OFFICE else pdf()
    check(tmp_path_factory.mktemp("damaged"), name, content, 1, damage)


def pdf() -> bytes:
    figure = Figure()
    figure.text(0.1, 0.5, SENTENCE * 2)
    sink = io.BytesIO()
    figure.savefig(sink, format="pdf")
    return sink.getvalue()


def test_whole_files_are_read_whole(tmp_path: Path):
    for name, (content, n_documents) in whole_files(tmp_path).items():
        rows, _, errors = read(tmp_path / name, {name: content})
        assert (len(rows), errors) == (n_documents, []), name
