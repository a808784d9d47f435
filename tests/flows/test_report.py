"""The report shows what a text says, and does not do what it says."""

from pathlib import Path

from flows.runs.record import new_run
from flows.views.report import render_report
from tasks.engine.store import Store


def test_nothing_that_a_run_names_becomes_markup(tmp_path: Path):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    store = Store(tmp_path)
    run = new_run(
        store,
        "demo",
        {"flow": hostile, "recipe": {"name": hostile}, "machine": {"device": hostile}, "champion": None},
    )
    run.end("failed", hostile)
    text = render_report(run, store).read_text()
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(1)" in text
