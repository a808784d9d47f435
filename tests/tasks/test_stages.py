"""What holds for every stage: declared libraries, and which code is in whose key."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from flows import evaluate, finetune, pretrain, retrain
from flows.recipe import Recipe
from model.base_config import Config
from tasks.stage import Artifact, Shard, Stage, map_stage, stage
from tasks.store.code import code_digests, third_party_imports
from tests.conftest import ROOT

NEUTRAL = {"pydantic"}
"""Read configurations, and decide no byte of a result."""

NODES = pretrain.graph(Recipe.model_validate({"ingest": {"sources": [{"path": "x"}]}}))
STAGES = {
    value.name: value
    for module in (pretrain, retrain, evaluate, finetune)
    for value in vars(module).values()
    if isinstance(value, Stage)
}


@pytest.mark.parametrize("found", STAGES.values(), ids=STAGES)
def test_declared_libraries_are_those_that_are_imported(found):
    distributions = metadata.packages_distributions()
    imported = {
        distributions[name][0].lower().replace("_", "-")
        for name in third_party_imports(found.fn.__module__)
        if name in distributions
    }
    declared = {name.lower().replace("_", "-") for name in found.libraries}
    assert imported - NEUTRAL <= declared


DIGESTS = """
import json, sys
from tasks.store.code import code_digests
print(json.dumps({name: code_digests("tasks." + name) for name in sys.argv[1:]}))
"""


def digests_of(root: Path, *stages: str) -> dict[str, dict[str, str]]:
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", DIGESTS, *stages]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ("module", "changed", "unchanged"),
    [
        ("model/transformer.py", {"train_model", "export_model"}, {"clean", "tokenize", "ingest"}),
        ("tasks/documents/words.py", {"clean", "minhash", "decontaminate"}, {"train_model", "ingest"}),
        ("model/tokens.py", {"tokenize", "train_model"}, {"clean", "split"}),
        ("tasks/build.py", set(), {"clean", "train_model", "ingest", "evaluate_model"}),
    ],
)
def test_a_line_of_code_changes_the_stages_that_import_it(tmp_path: Path, module: str, changed: set, unchanged: set):
    for package in ("flows", "tasks", "model"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    stages = sorted(changed | unchanged)
    before = digests_of(tmp_path, *stages)
    with (tmp_path / module).open("a") as file:
        file.write("\n# a comment\n")
    assert digests_of(tmp_path, *stages) == before
    with (tmp_path / module).open("a") as file:
        file.write("\nA_LINE = 1\n")
    after = digests_of(tmp_path, *stages)
    assert {name for name in stages if before[name] != after[name]} == changed


def test_the_training_process_is_in_the_key():
    assert {"model.train", "model.transformer", "model.optimizer", "model.batches", "model.checkpoint", "tasks.ranks"} <= set(
        code_digests("tasks.train_model")
    )


def test_functions_that_are_no_stages_are_refused():
    class Empty(Config):
        pass

    with pytest.raises(TypeError, match="the parameter folder is none of"):

        @stage()
        def strange(config: Empty, folder: str, out: Path) -> dict:
            return {}

    with pytest.raises(TypeError, match="go together"):

        @stage()
        def sharded(config: Empty, documents: Shard, out: Path) -> dict:
            return {}

    with pytest.raises(TypeError, match="go together"):

        @map_stage()
        def whole(config: Empty, documents: Artifact, out: Path) -> dict:
            return {}


def test_a_call_builds_a_node_and_the_plain_function_is_there():
    assert [node.stage.name for node in NODES][:2] == ["ingest", "clean"]
    assert NODES[1].inputs == {"documents": NODES[0]}
    with pytest.raises(TypeError, match="takes the inputs"):
        NODES[1].stage(NODES[1].config)
    assert callable(NODES[0].stage.fn)
