"""A person's own text, at first go: init and run as they come, on eight kinds of it."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.command.app import app
from flows.recipe.read import load_recipe
from tasks.engine.stage import Shard
from tasks.text.clean import clean
from tests.end_to_end.conftest import Line
from tests.ordinary_text import write_ordinary_text
from tests.reading import read_text

SCRATCHLM = str(Path(sys.executable).parent / "scratchlm")
KINDS = ("prose", "documentation", "german", "french", "japanese", "code", "html", "one_large_file")


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory, speeches: list[Path]) -> Path:
    """A folder with a folder of each kind."""
    folder = tmp_path_factory.mktemp("ordinary")
    assert set(write_ordinary_text(folder, speeches)) == set(KINDS)
    return folder


def init(folder: Path, *arguments: str) -> str:
    """The command in this process, which has imported what it needs."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, ["init", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def kept(recipe: Any, out: Path) -> tuple[int, int]:
    """Documents that a recipe reads, and those that cleaning keeps."""
    out.mkdir()
    shards, metrics = read_text(recipe.ingest, out)
    n_kept = 0
    for i, shard in enumerate(shards):
        cleaned = out / "cleaned" / str(i)
        n_kept += clean.fn(recipe.clean, documents=Shard(shard), out=cleaned)["kept"]
    return metrics["documents"], n_kept


@pytest.mark.parametrize("kind", KINDS)
def test_init_makes_a_recipe_that_keeps_ordinary_text(ordinary: Path, tmp_path: Path, kind: str):
    printed = init(tmp_path, str(ordinary / kind), "--minutes", "1", "--output", "own.yaml")
    assert "scratchlm run own.yaml" in printed
    recipe = load_recipe(tmp_path / "own.yaml")
    n_documents, n_kept = kept(recipe, tmp_path / "out")
    assert n_documents >= 20
    assert n_kept >= 0.95 * n_documents
    # Some of it is held out, and more is not.
    assert 4 <= recipe.split.validation_fraction * n_documents <= 0.5 * n_documents
    english = kind in ("prose", "documentation", "html", "one_large_file")
    assert bool(recipe.evaluate_model.tasks) == english or kind == "code"


@pytest.mark.end_to_end
def test_a_folder_of_everything_becomes_a_model_at_first_go(
    ordinary: Path, tmp_path: Path, prefect_server: str
):
    own, folder = Line(tmp_path, prefect_server), tmp_path / "everything"
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        for path in sorted((ordinary / kind).iterdir())[::4]:
            shutil.copy(path, folder / kind)
    (folder / "scan.tiff").write_bytes(b"%PDF-1.7")
    (folder / "prices.csv").write_text("day,price\n1,2\n")
    printed = own.call("init", "everything", "--minutes", "1", "--output", "own.yaml").stdout
    assert "1 not a kind of file that is read (.tiff)" in printed
    assert re.search(r"stages to build: about (\d+) s", printed)
    # The few texts of a language are alike, so all of them are on one side: here on that which is learnt from.
    sides = ("--set", "split.seed=5", "--set", "split.validation_fraction=0.1")
    shorter = ("--set", f"train_model.tokens={load_recipe(tmp_path / 'own.yaml').train_model.tokens // 12}")
    planned = own.call("plan", "own.yaml", *sides, *shorter).stdout
    foretold = re.search(r"stages to build: about (\d+) s", planned)
    assert foretold
    done = own.call("run", "own.yaml", "--json", *sides, *shorter)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert "a table with no field with the text (its fields: 'day', 'price'" in done.stderr
    figures = json.loads((own.store / "runs" / "latest" / "run.json").read_text())
    assert figures["forecast"]["total_seconds"] == pytest.approx(float(foretold.group(1)), abs=5)
    train = Path(summary["artifacts"]["train_model"]["path"])
    losses = [json.loads(line) for line in (train / "figures" / "metrics.jsonl").read_text().splitlines()]
    measured = [line["validation_bits_per_byte"] for line in losses if "validation_bits_per_byte" in line]
    assert min(measured) < measured[0]
    assert losses[-1]["loss"] < losses[0]["loss"]
    held_out = Path(summary["artifacts"]["evaluate_held_out"]["path"])
    samples = json.loads((held_out / "figures" / "samples.json").read_text())
    assert samples
    assert all(sample["prompt"] and sample["text"] for sample in samples)
    assert "Foretold" in Path(summary["report"]).read_text()


def test_init_overwrites_nothing_and_says_what_is_no_text(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\x89PNG")
    done = subprocess.run([SCRATCHLM, "init", "pictures"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "1 not a kind of file that is read (.png)" in done.stderr
    (tmp_path / "own.yaml").write_text("mine")
    done = subprocess.run(
        [SCRATCHLM, "init", "pictures", "-o", "own.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, (tmp_path / "own.yaml").read_text()) == (2, "mine")
    assert "own.yaml exists already" in done.stderr


def test_init_says_what_it_cannot_read(tmp_path: Path):
    (tmp_path / "latin").mkdir()
    for i in range(30):
        (tmp_path / "latin" / f"{i}.txt").write_bytes(b"Caf\xe9 numero 1")
    done = subprocess.run([SCRATCHLM, "init", "latin"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "30 x not UTF-8 at byte 3, such as 0.txt" in done.stderr
    for i in range(30):
        (tmp_path / "latin" / f"good-{i}.txt").write_text("Text that can be read, and more of it. " * 10)
    assert "cannot be read: 30 x not UTF-8 at byte 3" in init(tmp_path, "latin", "--minutes", "1")


def test_init_names_the_field_that_nothing_else_tells(tmp_path: Path):
    rows = [{"subject": f"s{i}", "message": f"A long message about matter {i}. " * 20} for i in range(80)]
    (tmp_path / "mail.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = init(tmp_path, "mail.jsonl", "--minutes", "1")
    assert "text_field: message" in (tmp_path / "mail.yaml").read_text()
    assert "from their field 'message'" in printed
    documents, n_kept = kept(load_recipe_in(tmp_path, "mail.yaml"), tmp_path / "out")
    assert (documents, n_kept) == (80, 80)


def load_recipe_in(folder: Path, name: str) -> Any:
    """A recipe whose relative paths are meant from its folder."""
    recipe = load_recipe(folder / name)
    sources = [
        source.model_copy(update={"path": str(folder / source.path)}) for source in recipe.ingest.sources
    ]
    return recipe.model_copy(update={"ingest": recipe.ingest.model_copy(update={"sources": tuple(sources)})})
