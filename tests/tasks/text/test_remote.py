"""Text behind a URL: a real S3 server, a real web server, and the hub's client, on this computer."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest

from model.errors import InputError, StageFailed
from tasks.engine.process import free_port
from tasks.engine.sources import SourceDigests
from tasks.text.pieces import list_pieces
from tasks.text.remote import fetched, list_remote
from tasks.text.sources import IngestConfig, Source
from tests.conftest import ROOT
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


class Tagged(http.server.SimpleHTTPRequestHandler):
    """Files with an ETag, as web servers tell it that know versions."""

    tag = True

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if self.tag and path.is_file():
            self.send_header("ETag", hashlib.sha256(path.read_bytes()).hexdigest())
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A web server on this computer: its folder, and its address."""
    folder = tmp_path / "web"
    folder.mkdir()
    monkeypatch.setattr(Tagged, "tag", True)
    handler = functools.partial(Tagged, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_files_of_a_web_server_are_read_and_a_change_is_seen(web: tuple[Path, str], tmp_path: Path):
    folder, url = web
    (folder / "in").mkdir()
    (folder / "in" / "a.txt").write_text("Grüße")
    (folder / "in" / "b.jsonl").write_text('{"text": "two"}\n')
    # With a link that sorts it, as servers have them.
    links = "".join(f'<a href="{name}">x</a>' for name in ("?C=N;O=D", "a.txt", "b.jsonl"))
    (folder / "in" / "index.html").write_text(links)
    for path, ids in ((f"{url}/in/", ["text/a.txt", "text/b.jsonl:0"]), (f"{url}/in/a.txt", ["text/a.txt"])):
        rows, _, errors = run(tmp_path / path.rsplit("/", 1)[-1], Source(path=path))
        assert not errors
        assert [row["id"] for row in rows] == ids
        assert rows[0]["text"] == "Grüße"
    before = list_pieces(config(f"{url}/in/a.txt"), SourceDigests()).each
    (folder / "in" / "a.txt").write_text("Größe")
    after = list_pieces(config(f"{url}/in/a.txt"), SourceDigests()).each
    assert before != after


def test_a_folder_of_a_web_server_is_read_as_far_as_it_goes(web: tuple[Path, str]):
    folder, url = web
    below = folder / "in" / "sub"
    below.mkdir(parents=True)
    (folder / "in" / "a.txt").write_text("one")
    (below / "b.txt").write_text("two")

    def links(at: Path, *names: str) -> None:
        (at / "index.html").write_text("".join(f'<a href="{name}">x</a>' for name in names))

    # As Apache and nginx write them: what sorts a list, a place in it, the folder above, whom to write to.
    links(
        folder / "in",
        "?C=N;O=D",
        "#top",
        "/",
        "../",
        "mailto:a@b.org",
        "ftp://mirror.org/a.txt",
        "MAGNET:?xt=1",
        "a.txt",
        "sub/",
    )
    links(below, "?C=S;O=A", "/in/", "../", "b.txt")
    names = [name for name, *_ in list_remote(f"{url}/in/")[0]]
    assert names == ["a.txt", "sub/b.txt"]
    # With the scheme that a proxy has, with a colon in a name, and with an empty folder in it.
    (folder / "in" / "b:1.txt").write_text("three")
    (folder / "in" / "empty").mkdir()
    links(folder / "in" / "empty")
    (folder / "in" / "part-0:1.txt").write_text("four")
    a = f"https{url.removeprefix('http')}/in/a.txt"
    links(folder / "in", a, "./b:1.txt", "/in/part-0:1.txt", "./", "sub/", "empty/")
    names = [name for name, *_ in list_remote(f"{url}/in/")[0]]
    assert names == ["a.txt", "b:1.txt", "part-0:1.txt", "sub/b.txt"]
    (below / "me").symlink_to(below)
    links(below, "b.txt", "me/")
    with pytest.raises(InputError, match="one of them links to itself"):
        list_remote(f"{url}/in/")
    # Less than all of it is none of it.
    links(folder / "in", "a.txt", "sub/", "gone/")
    with pytest.raises(InputError, match=r"cannot be listed.*gone"):
        list_remote(f"{url}/in/")
    links(folder / "in", "a.txt", "gone.txt")
    with pytest.raises(InputError, match=r"cannot be listed.*gone\.txt"):
        list_remote(f"{url}/in/")


def test_a_server_that_tells_no_version_is_refused(web: tuple[Path, str], monkeypatch: pytest.MonkeyPatch):
    folder, url = web
    (folder / "a.txt").write_text("text")
    monkeypatch.setattr(Tagged, "tag", False)
    with pytest.raises(InputError, match="tells no ETag and no version, so a change would go unseen"):
        list_pieces(config(f"{url}/a.txt"), SourceDigests())


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a dataset of three files needs: what it is, its folders, and its files."""

    files: ClassVar = {"data/a.txt": b"one", "data/b/c.txt": b"two", "README.md": b"three"}
    asked: ClassVar[list[str]] = []

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def _answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        found = {}
        for name, data in self.files.items():
            if name.startswith(f"{folder}/" if folder else ""):
                first = name[len(folder) :].strip("/").split("/")[0]
                path = name if recursive else f"{folder}/{first}".strip("/")
                own = {"type": "directory", "path": path, "oid": "0", "size": 0}
                if path == name:
                    own = {**own, "type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
                found[path] = own
        return list(found.values())

    def do_GET(self) -> None:
        path, _, query = unquote(self.path).partition("?")
        self.asked.append(path)
        of_dataset = path.removeprefix("/api").startswith("/datasets/org/name")
        if "/tree/" in path:
            folder = path.split("/tree/")[1].partition("/")[2]
            self._answer(json.dumps(self._tree(folder, "recursive=true" in query.lower())).encode())
        elif "/resolve/" in path:
            data = self.files[path.split("/resolve/")[1].partition("/")[2]]
            self._answer(data, ETag=hashlib.sha1(data).hexdigest(), X_Repo_Commit="0" * 40)
        elif of_dataset:
            self._answer(json.dumps({"id": "org/name", "sha": "0" * 40}).encode())
        else:
            self.send_error(404)


READ = """
import sys
from tasks.text.remote import fetched, list_remote
for name, size, version in list_remote(sys.argv[1])[0]:
    with fetched(sys.argv[1], name, size, version) as path:
        print(name, path.read_text(), version)
"""


def test_files_of_a_dataset_on_the_hub_are_read_at_a_revision(tmp_path: Path):
    """By the hub's own client, against a server on this computer that answers as the hub does."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", READ, "hf://datasets/org/name@v1.0/data"],
            env={**env, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    versions = {name: hashlib.sha1(data).hexdigest() for name, data in Hub.files.items()}
    assert done.stdout.splitlines() == [
        f"a.txt one blob_id {versions['data/a.txt']}",
        f"b/c.txt two blob_id {versions['data/b/c.txt']}",
    ]
    assert any("/tree/v1.0" in path for path in Hub.asked)
