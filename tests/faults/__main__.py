"""Attack a build with seeded random faults: python -m tests.faults --seed N --faults 1000 [--line]."""

import argparse
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.end_to_end.conftest import running_server
from tests.faults.chaos import Chaos, Lie, line_subject, toy_subject


def main() -> int:
    """Run until the law is broken or all faults are done; prints what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument(
        "--line", action="store_true", help="the whole line with real training, minutes a fault"
    )
    given = parser.parse_args()
    started = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if given.line:
            (folder / "prefect").mkdir()
            server = stack.enter_context(running_server(folder / "prefect"))
            subject = line_subject(folder / "subject", server)
        else:
            subject = toy_subject(folder / "subject")
        chaos = Chaos(subject, random.Random(given.seed))
        try:
            for number, name in enumerate(chaos.run(given.faults), 1):
                print(f"\r{number} of {given.faults}: {name:<12}", end="", flush=True)
        except Lie as lie:
            print(f"\nA LIE, with seed {given.seed}: {lie}")
            return 1
    print(f"\nseed {given.seed}, {given.faults} faults in {time.monotonic() - started:.0f} s, no lie")
    print(", ".join(f"{name} {count}" for name, count in sorted(chaos.counts.items())))
    print(f"{chaos.repairs} builds ended with a sentence and were mended by the next")
    return 0


if __name__ == "__main__":
    sys.exit(main())
