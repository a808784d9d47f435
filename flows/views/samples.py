"""Documents of a run as a page, beside the values that decided about them."""

from pathlib import Path
from typing import Any

from flows.runs.record import Run
from flows.views.report import environment
from model.files import write_whole

SAMPLES = "samples.html"
_MOST_CHARACTERS = 3_000


def render_samples(run: Run, documents: list[dict[str, Any]], kind: str) -> Path:
    """Write samples.html into the folder of a run; returns its path.

    Args:
        documents: rows of the table `documents`.
        kind: which documents they are, in words.
    """
    path = run.path / SAMPLES
    html = (
        environment()
        .get_template("samples.html.jinja")
        .render(run=run.name, documents=documents, kind=kind, most=_MOST_CHARACTERS)
    )
    write_whole(path, html)
    return path
