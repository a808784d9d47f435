"""The README is true: its commands run, its recipe is valid, and its picture is the graph."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flows.pretrain import graph
from flows.recipe.read import load_recipe
from tests.conftest import ROOT
from tests.waiting import HANGING_SECONDS

README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all commands, as a person has it: how fast this machine trains is tried once."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("scratchlm")])
def test_commands_run(command: str, store: Path):
    program, *arguments = shlex.split(command)
    below = [] if arguments[0] == "fields" else ["--store", str(store)]
    done = subprocess.run(
        [BIN / program, *arguments, *below], cwd=ROOT, capture_output=True, text=True, timeout=HANGING_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_targets_exist(command: str):
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_recipe_for_ones_own_text_is_valid(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(blocks("yaml")[0])
    recipe = load_recipe(path)
    assert recipe.ingest.sources[0].path == "text"


def test_every_stage_is_in_the_picture_and_in_the_table():
    nodes = graph(load_recipe(ROOT / "deployments" / "recipes" / "demo.yaml"))
    for node in nodes:
        assert README.count(node.stage.name) >= 2, node.stage.name
