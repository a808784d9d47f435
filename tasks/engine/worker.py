"""A worker of a cluster: checks that it may, and builds the shards at the positions that it is given.

python -m tasks.engine.worker --array SPEC FOLDER TASK    the shards at the positions that FOLDER has for this task
python -m tasks.engine.worker --examine FOLDER TASK       what this computer has, as a JSON file in FOLDER

What is done, the store alone says; what a worker tells is for progress and for people.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from model.errors import StageFailed
from model.files import write_whole
from tasks.engine import process
from tasks.engine.failures import describe_with_traceback
from tasks.engine.job import build_shard, read_spec
from tasks.engine.leases import TOUCH_SECONDS, is_held
from tasks.engine.manifest import FORMAT_VERSION
from tasks.engine.resolve import PYTHON, library_version
from tasks.engine.spec import Spec
from tasks.engine.stage import load_stage
from tasks.engine.store import Store


def differences(spec: Spec) -> list[str]:
    """How this computer differs from the one that asked for the shards, as far as a result may depend on it."""
    told = []
    if spec.format_version != FORMAT_VERSION:
        told.append(f"scratchlm's format {FORMAT_VERSION} instead of {spec.format_version}")
    if spec.ingredients["python"] != PYTHON:
        told.append(f"Python {PYTHON} instead of {spec.ingredients['python']}")
    for name, version in spec.ingredients["libraries"].items():
        own = library_version(name)
        if own != version:
            told.append(f"{name} {own} instead of {version}")
    own_code = load_stage(spec.stage).code_of_values(spec.config)
    edited = sorted(name for name, value in spec.ingredients["code"].items() if own_code.get(name) != value)
    if edited:
        told.append(f"other code in {', '.join(edited[:3])}")
    return told


@cache
def _check(spec_path: Path, key: str) -> None:
    told = differences(read_spec(spec_path))
    if told:
        raise StageFailed(
            f"this node has {'; '.join(told)}: install the same code and libraries on every node (constraints.txt), and see "
            "`scratchlm doctor --cluster`"
        )


def _spec_in_store(path: Path) -> Spec:
    try:
        return read_spec(path)
    except FileNotFoundError as error:
        raise StageFailed(
            f"this node does not see {path}: mount the store under the same path on every node, and see "
            "`scratchlm doctor --cluster`"
        ) from error


def build_one(spec_path: Path, position: int) -> dict[str, Any]:
    """Build one shard on this computer; returns position, host, and whether it was built, or the error that ended it."""
    told: dict[str, Any] = {"position": position, "host": socket.gethostname()}
    try:
        spec = _spec_in_store(spec_path)
        stage = load_stage(spec.stage)
        _check(spec_path, spec.key)
        if spec.folder.is_dir():  # a node may do without it
            os.chdir(spec.folder)
        if not is_held(Store(spec.store).lease(stage.name, spec.key)):
            raise StageFailed("whoever asked for it has ended", retryable=True)
        attempt = Store(spec.store).attempts(stage.name, spec.key) / uuid.uuid4().hex
        return {**told, "built": build_shard(spec, position, attempt)}
    except (SystemExit, KeyboardInterrupt):
        raise  # this worker is asked to end, and its shard is built elsewhere
    except BaseException as error:
        return {**told, **describe_with_traceback(error)}


_READERS = ('extra == "office"', 'extra == "s3"')
"""How requirements end that are needed to read some kinds of files, and for nothing else."""


def _libraries(are_readers: bool) -> dict[str, str]:
    """Version of each distribution that the project asks for, or that it needs to read some files; of those that are installed."""
    names = {
        re.split(r"[^A-Za-z0-9._-]", wanted)[0]
        for wanted in importlib.metadata.requires("scratchlm") or ()
        if (wanted.endswith(_READERS) if are_readers else "extra ==" not in wanted)
    }
    found = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def examine(folder: Path) -> dict[str, Any]:
    """What this computer has, as far as results may depend on it.

    Args:
        folder: in the store; whether it is seen here is told too.
    """
    root = Path(__file__).resolve().parents[2]
    modules = {
        f"{path.relative_to(root)}": path.read_bytes()
        for package in ("model", "tasks")
        for path in sorted((root / package).rglob("*.py"))
    }
    return {
        "host": socket.gethostname(),
        "sees_store": folder.is_dir(),
        "python": PYTHON,
        "format": FORMAT_VERSION,
        "code": {name: hashlib.sha256(content).hexdigest()[:16] for name, content in modules.items()},
        "libraries": _libraries(are_readers=False),
        "readers": _libraries(are_readers=True),
    }


def compare(own: dict[str, Any], node: dict[str, Any]) -> list[str]:
    """How what `examine` told of a node differs from what it told here."""
    told = [] if node["sees_store"] else ["it does not see the store"]
    told += [
        f"{name} {node[name]} instead of {own[name]}"
        for name in ("python", "format")
        if own[name] != node[name]
    ]
    edited = [name for name, content in own["code"].items() if node["code"].get(name) != content]
    if edited:
        told.append(f"other code in {', '.join(edited[:3])}{' and more' if len(edited) > 3 else ''}")
    names = sorted(own["libraries"].keys() & node["libraries"].keys())
    other = [
        f"{name} {node['libraries'][name]} instead of {own['libraries'][name]}"
        for name in names
        if own["libraries"][name] != node["libraries"][name]
    ]
    missing = sorted(own["libraries"].keys() - node["libraries"].keys())
    return told + other[:5] + ([f"without {', '.join(missing[:5])}"] if missing else [])


def _end_with_driver(lease: Path) -> None:
    """End this process once whoever asked for its shards is gone, also in the middle of one."""
    while True:
        time.sleep(TOUCH_SECONDS)
        held = True
        with suppress(OSError):  # of whatever kind: this thread is all that ends this process
            held = is_held(lease)
        if not held:
            print("whoever asked for the shards has ended", flush=True)
            os._exit(1)


def build_array_task(spec_path: Path, folder: Path, task: str) -> int:
    """Build the shards of one task of an array of jobs, and write a line for each."""
    process.exit_on_sigterm()
    spec = read_spec(spec_path)
    lease = Store(spec.store).lease(load_stage(spec.stage).name, spec.key)
    threading.Thread(target=_end_with_driver, args=(lease,), daemon=True).start()
    with (folder / f"results-{task}.jsonl").open("a") as lines:
        lines.write("\n")  # after what an earlier process of this task may have begun
        for position in json.loads((folder / f"positions-{task}.json").read_text()):
            told = build_one(spec_path, position)
            if told.get("traceback"):
                print(told["traceback"], flush=True)
            lines.write(json.dumps(told) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
            if "error" in told:
                return 1
    return 0


def write_examination(folder: Path) -> None:
    """Write what this computer has as a file of JSON."""
    seen = examine(folder)
    target = folder / f"{seen['host']}-{uuid.uuid4().hex[:8]}.json"
    write_whole(target, json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[1] == "--examine":
        write_examination(Path(sys.argv[2]))
    else:
        sys.exit(build_array_task(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
