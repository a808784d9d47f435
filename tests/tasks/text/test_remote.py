"""Text behind a URL: a real S3 server on this computer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from model.errors import InputError, StageFailed
from tasks.engine.process import free_port
from tasks.engine.sources import SourceDigests
from tasks.text.pieces import list_pieces
from tasks.text.remote import fetched
from tasks.text.sources import IngestConfig, Source
from tests.tasks.text.test_ingest import run


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """An empty bucket `text`; yields its file system."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    port = free_port()
    server = moto.ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "canary",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("text")
    yield files
    files.rm("text", recursive=True)
    server.stop()


def config(path: str = "s3://text/in") -> IngestConfig:
    return IngestConfig(sources=(Source(path=path),), max_error_rate=1.0)


def test_files_of_a_bucket_are_read_as_files_here(s3, tmp_path: Path):
    s3.pipe(
        {
            "text/in/a.txt": "Grüße".encode(),
            "text/in/b/c.jsonl": b'{"text": "two"}\n',
            "text/in/d.png": b"PNG",
        }
    )
    s3.pipe("text/in/.hidden/e.txt", b"no")
    rows, metrics, errors = run(tmp_path / "out", *config().sources)
    assert [(row["id"], row["text"]) for row in rows] == [
        ("text/a.txt", "Grüße"),
        ("text/b/c.jsonl:0", "two"),
    ]
    assert metrics["skipped"] == {"hidden": 1, "not a kind of file that is read (.png)": 1}
    assert not errors
    rows, _, _ = run(tmp_path / "one", Source(path="s3://text/in/a.txt"))
    assert [row["id"] for row in rows] == ["text/a.txt"]


def test_a_file_that_is_changed_or_added_changes_its_piece(s3):
    s3.pipe({f"text/in/{i:03d}.txt": b"x" * 900_000 for i in range(6)})
    before = list_pieces(config(), SourceDigests()).each
    s3.pipe("text/in/003.txt", b"y" * 900_000)
    after = list_pieces(config(), SourceDigests()).each
    assert before != after
    assert len(before) > 2
    assert sum(piece in before for piece in after) >= len(after) - 1


def test_a_file_that_changes_while_it_is_read_is_refused(s3):
    s3.pipe("text/in/a.txt", b"first")
    (piece,) = list_pieces(config(), SourceDigests()).each
    ((name, size, version),) = piece["files"]
    s3.pipe("text/in/a.txt", b"later")
    with (
        pytest.raises(StageFailed, match="changed while it was read"),
        fetched("s3://text/in", name, size, version),
    ):
        pass


def test_what_is_not_there_is_one_sentence(s3):
    for path in ("s3://text/nothing", "s3://nobucket/x"):
        with pytest.raises(InputError, match=r"ingest\.sources"):
            list_pieces(config(path), SourceDigests())
    with pytest.raises(InputError, match="cannot be read"):
        list_pieces(config("nosuch://x/y"), SourceDigests())
