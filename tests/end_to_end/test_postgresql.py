"""serve with a real PostgreSQL as the server's database."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.engine.process import free_port
from tests.end_to_end.conftest import Line
from tests.end_to_end.serving import Serve

pytestmark = pytest.mark.end_to_end


def _program(name: str) -> str | None:
    """A program of PostgreSQL, also where Debian keeps it."""
    found = shutil.which(name)
    return found or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None
    )


@pytest.fixture
def postgresql() -> Iterator[str]:
    """A cluster of its own on loopback; yields the address of its database postgres.

    Outside pytest's folders: another session of pytest closes them to other accounts when it begins.
    """
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    if not initdb or not pg_ctl:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="scratchlm-postgresql-"))
    owner: dict[str, int] = {}
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        account = pwd.getpwnam("nobody")
        owner = {"user": account.pw_uid, "group": account.pw_gid}
        os.chown(folder, account.pw_uid, account.pw_gid)
    data, port = folder / "data", free_port()
    command = [initdb, "-D", str(data), "-U", "scratchlm", "-A", "trust", "--no-sync"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, **owner)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    control = [pg_ctl, "-D", str(data), "-w", "-l", str(folder / "log")]
    subprocess.run(
        [*control, "-o", options, "start"], check=True, cwd=folder, stdout=subprocess.DEVNULL, **owner
    )
    yield f"postgresql+asyncpg://scratchlm:canary-password@127.0.0.1:{port}/postgres"
    subprocess.run(
        [*control, "-t", "600", "-m", "fast", "stop"],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        **owner,
    )
    shutil.rmtree(folder)


def test_serve_on_postgresql(line: Line, postgresql: str, tmp_path: Path):
    copy = Line(tmp_path / "copy", None)
    shutil.copytree(line.root, copy.root, symlinks=True)
    served = Serve(copy, PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql)
    try:
        run = served.start("pretrain/tiny")
        assert served.end(run)["type"] == "COMPLETED"
        assert set(served.stages(run).values()) == {"Cached"}
        assert not (copy.store / "prefect" / "prefect.db").exists()
    finally:
        served.stop()
    written = [
        path.read_bytes() for path in copy.store.rglob("*") if path.is_file() and not path.is_symlink()
    ]
    assert not any(b"canary-password" in text for text in written)
