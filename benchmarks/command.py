"""How fast the command answers when there is nothing to do.

    python benchmarks/command.py RECIPE [--store DIR] [--repeat N]

Needs a store in which a run of the recipe has completed. Prints minimum, median and maximum
of wall-clock seconds of whole processes, without a Prefect server.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Time each command and print a table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("recipe", type=Path, help="recipe of a run that has completed")
    options.add_argument("--store", type=Path, default=Path("store"), help="store of that run")
    options.add_argument(
        "--repeat", type=int, default=7, help="runs of each command, after one that is not counted"
    )
    given = options.parse_args()
    program = str(Path(sys.executable).parent / "scratchlm")
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    in_store = [str(given.recipe), "--store", str(given.store)]
    print("| command | min s | median s | max s |\n|---|---|---|---|")
    for name, arguments in (
        ("--help", ["--help"]),
        ("plan", ["plan", *in_store]),
        ("run, all cached", ["run", *in_store]),
    ):
        seconds = []
        for i in range(given.repeat + 1):
            started = time.perf_counter()
            subprocess.run([program, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
            if i:
                seconds.append(time.perf_counter() - started)
        print(f"| {name} | {min(seconds):.2f} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |")


if __name__ == "__main__":
    main()
