"""The server of a run: its own database, two first runs at once, and nobody else."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flows.serving.server import LOOPBACK, address_of, names_of
from tests.waiting import HANGING_SECONDS

PROGRAM = """
import os, sys
from pathlib import Path
import httpx
from flows.serving.server import prefect_server
with prefect_server(Path(sys.argv[1])):
    url = os.environ["PREFECT_API_URL"]
    asked = httpx.Client(timeout=600)
    print(asked.post(f"{url}/flows/filter", json={}).status_code, asked.get(f"{url}/health").status_code)
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        print(client.api_healthcheck())
print(os.environ.get("PREFECT_API_URL"), os.environ.get("PREFECT_API_AUTH_STRING"))
"""


@pytest.mark.end_to_end
def test_two_first_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_API_REQUEST_TIMEOUT", str(HANGING_SECONDS))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        # Without its token a stranger's request is refused; the run's own client is heard.
        assert out.splitlines() == ["403 200", "None", "None None"]
    (home,) = (tmp_path / "prefect").glob("runs-*")
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert (home / "prefect.db").is_file()


KILLED = """
import os, signal, sys, time
from pathlib import Path
import psutil
from flows.serving.server import prefect_server
with prefect_server(Path(sys.argv[1])):
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        before = client.create_flow_from_name("kept")
        (server,) = psutil.Process().children()
        server.kill()
        print(client.read_flow_by_name("kept").id == before)
print(psutil.Process().children())
"""


@pytest.mark.end_to_end
def test_a_server_that_is_killed_is_started_again_and_knows_what_it_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_API_REQUEST_TIMEOUT", str(HANGING_SECONDS))
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert done.stdout.splitlines() == ["True", "[]"], done.stderr


def test_a_server_is_asked_by_the_name_under_which_it_listens():
    assert address_of(LOOPBACK, 4200) == address_of("0.0.0.0", 4200) == "http://127.0.0.1:4200"
    assert address_of("192.0.2.7", 4200) == "http://192.0.2.7:4200"
    assert names_of(LOOPBACK) == [LOOPBACK, "localhost"]
    assert {LOOPBACK, "localhost", "192.0.2.7"} <= set(names_of("192.0.2.7"))
    # Browsers let pages of other sites send requests there.
    assert "0.0.0.0" not in names_of("0.0.0.0")
