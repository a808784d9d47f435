"""What others wrote gives the terminal no commands, and rich none either."""

import io
from pathlib import Path

from flows.command.options import PrintableConsole
from flows.command.say import printable
from flows.runs.plan import Planned
from flows.views.terminal import plan_table
from tests.flows.command.test_command import command, write


def test_what_commands_a_terminal_is_spelt_out():
    assert printable("a\x1b[2Jb\tc\nd\x07\x9b1m\u202e") == "a\\x1b[2Jb\tc\nd\\x07\\x9b1m\\u202e"


def test_a_table_shows_markup_and_commands_as_they_are_written():
    out = io.StringIO()
    console = PrintableConsole(file=out, width=100)
    console.print(plan_table([Planned("ingest", "run", "source: [/bold] \x1b]0;owned\x07 [red]x")]))
    assert "[/bold] \\x1b]0;owned\\x07 [red]x" in out.getvalue()


def test_names_of_files_and_of_fields_reach_no_terminal(tmp_path: Path):
    write(tmp_path, ingest={"sources": [{"path": "text", "format": "text"}]})
    folder = tmp_path / "te[red]xt\x1b[31m"
    folder.mkdir()
    (folder / "a\x1b[2J[bold].txt").write_text("Some text.")
    write(
        tmp_path,
        ingest={"sources": [{"path": str(folder)}]},
        train_tokenizer={"vocabulary_size": 300, "[/b]": 1},
    )
    for verb in ("plan", "run"):
        done = command(tmp_path, verb, "recipe.yaml")
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stderr + done.stdout
    write(tmp_path, ingest={"sources": [{"path": str(folder)}]})
    done = command(tmp_path, "plan", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr + done.stdout
