"""Entry point of the `scratchlm` command: imports nothing of ours before it is sure that it is ours."""

import importlib.util
import sys
from pathlib import Path

from flows.command.interrupted import INTERRUPT_EXIT, SENTENCE, was_interrupted

_OURS = Path(__file__).resolve().parents[2]


def strange_package() -> str | None:
    """What is wrong with where Python finds our packages; None if nothing is."""
    for name in ("flows", "tasks", "model"):
        spec = importlib.util.find_spec(name)
        place = spec.origin or next(iter(spec.submodule_search_locations or ()), "") if spec else "nowhere"
        if not Path(place).resolve().is_relative_to(_OURS / name):
            return (
                f"the package {name!r} that Python finds is not scratchlm's, but {place}: install scratchlm into an "
                "environment of its own, or take that folder off the path"
            )
    return None


def main() -> None:
    """Run the command."""
    if sys.platform == "win32":
        print("error: scratchlm runs on Linux and macOS; on Windows run it in WSL 2", file=sys.stderr)
        raise SystemExit(2)
    fault = strange_package()
    if fault:
        print(f"error: {fault}", file=sys.stderr)
        raise SystemExit(2)
    try:
        from model.imports import leave_at_once, uncollected

        leave_at_once()
        with uncollected():
            from flows.command.app import app
    except (KeyboardInterrupt, Exception) as error:
        if not was_interrupted(error):
            raise
        print(SENTENCE, file=sys.stderr)
        raise SystemExit(INTERRUPT_EXIT) from None

    app(prog_name="scratchlm")
