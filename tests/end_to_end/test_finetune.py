"""Fine-tuning through the real command: a base, conversations, kill -9, and what a person gets."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.engine.machine import Machine
from tasks.engine.stage import Artifact
from tasks.engine.store import Store
from tasks.evaluation.answers import ANSWERS
from tasks.evaluation.evaluate_answers import EvaluateAnswersConfig, evaluate_answers
from tasks.tables import read_table
from tests.end_to_end.conftest import RECIPE, Line
from tests.waiting import HANGING_SECONDS, assert_no_process_of, wait_until

pytestmark = pytest.mark.end_to_end

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What comes after {i}?"},
            {"role": "assistant", "content": f"After {i} comes {i + 1}."},
        ]
    }
    for i in range(80)
]
FINETUNE: dict[str, Any] = {
    "name": "tuned",
    "base": "tiny",
    "read_conversations": {
        "sources": [{"name": "chats", "path": "chats"}],
        "shard_bytes": 2_000,
        "max_error_rate": 0.1,
    },
    "split": {"validation_fraction": 0.2},
    "finetune": {"epochs": 6, "tokens_per_batch": 256, "learning_rate": 0.003, "adapter": {"rank": 4}},
    "evaluate_model": RECIPE["evaluate_model"],
    "machine": RECIPE["machine"],
}


def copy_of(line: Line, folder: Path, rows: list[Any] = ROWS, **sections: Any) -> Line:
    """A copy of the line with conversations and a recipe for fine-tuning."""
    made = Line(folder / "copy", line.server)
    shutil.copytree(line.root, made.root, symlinks=True)
    (made.root / "chats").mkdir()
    (made.root / "chats" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(made, **sections)
    return made


def write(line: Line, **sections: Any) -> None:
    (line.root / "finetune.yaml").write_text(yaml.safe_dump({**FINETUNE, **sections}))


def start(line: Line) -> subprocess.Popen:
    return subprocess.Popen(
        line.command("finetune", "finetune.yaml"),
        cwd=line.root,
        env=line.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def finetune(line: Line, *arguments: str) -> dict[str, Any]:
    return json.loads(line.call("finetune", "finetune.yaml", "--json", *arguments).stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def tuned(line: Line, tmp_path_factory: pytest.TempPathFactory) -> tuple[Line, dict[str, Any]]:
    made = copy_of(line, tmp_path_factory.mktemp("tuned"), [*ROWS, {"messages": ROWS[0]["messages"][:1]}])
    return made, finetune(made)


def test_base_and_tuned_model_are_compared_and_the_rest_is_cached(tuned: tuple[Line, dict[str, Any]]):
    made, done = tuned
    assert {name for name, artifact in done["artifacts"].items() if artifact["cached"]} == {
        "base_model",
        "base_tokenizer",
        "base_export",
        "base_benchmarks",
        "index_benchmarks",
    }
    group = done["results"]["answers"]["all"]
    assert group["conversations"] > 5
    assert group["tuned_bits_per_byte"] < group["base_bits_per_byte"]
    report = Path(done["report"]).read_text()
    assert "Held-out answers" in report
    assert "sciq, base" in report
    errors = Path(done["artifacts"]["read_conversations"]["path"]) / "figures" / "errors.jsonl"
    assert json.loads(errors.read_text())["error"] == "it has no turn of the assistant"
    export = Path(done["artifacts"]["export_model"]["path"])
    assert (export / "chat_template.jinja").is_file()
    assert (export / "adapter" / "adapter_model.safetensors").is_file()
    again = finetune(made)
    assert all(artifact["cached"] for artifact in again["artifacts"].values())
    assert again["results"] == done["results"]
    verdicts = json.loads(made.call("why", "latest", "chats/a.jsonl:3", "--json").stdout)
    assert verdicts[0]["stage"] == "read_conversations"
    assert verdicts[-1]["stage"] == "tokenize_conversations"


def test_ranks_share_the_conversations_that_are_answered(tuned: tuple[Line, dict[str, Any]], tmp_path: Path):
    made, done = tuned

    def input_of(name: str) -> Artifact:
        folder = Path(done["artifacts"][name]["path"]).parent
        stored = Store(made.store).find("artifacts", folder.parent.name, folder.name)
        assert stored is not None
        return Artifact(stored.out, stored.shard_paths)

    rows = []
    for ranks in (1, 2):
        out, work = tmp_path / f"out-{ranks}", tmp_path / f"work-{ranks}"
        out.mkdir()
        work.mkdir()
        metrics = evaluate_answers.fn(
            EvaluateAnswersConfig(max_tokens=8),
            model=input_of("export_model"),
            documents=input_of("read_conversations"),
            selection=input_of("split"),
            out=out,
            work=work,
            machine=Machine(device="cpu", ranks=ranks, threads=1),
        )
        rows.append(read_table(out / ANSWERS).to_pylist())
        assert metrics["conversations"] == len(rows[-1]) > 5
    for ours, theirs in zip(*rows, strict=True):
        assert ours == {**theirs, "nats": pytest.approx(theirs["nats"], rel=1e-4)}


def test_a_killed_fine_tuning_goes_on_to_the_same_bytes(
    line: Line, tuned: tuple[Line, dict[str, Any]], tmp_path: Path
):
    made = copy_of(line, tmp_path, [*ROWS, {"messages": ROWS[0]["messages"][:1]}])
    write(made, machine={**RECIPE["machine"], "checkpoint_every_seconds": 0})
    process = start(made)
    wait_until(
        lambda: len(list((made.store / "work").glob("finetune_model-*/step-*"))) == 2,
        "two checkpoints",
        process,
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert_no_process_of(made.store)

    def digest(stage: str) -> str | None:
        """Of the result that the line did not have."""
        manifests = (made.store / "artifacts" / stage).glob("*/manifest.json")
        new = [path for path in manifests if not (line.store / path.relative_to(made.store)).exists()]
        return json.loads(new[0].read_text())["digest"] if new else None

    process = start(made)
    wait_until(lambda: digest("export_tuned_model"), "the export", process)
    process.terminate()
    process.wait(HANGING_SECONDS)
    manifest = next((made.store / "artifacts" / "finetune_model").glob("*/manifest.json"))
    assert json.loads(manifest.read_text())["metrics"]["resumed_from_step"] >= 2
    assert digest("finetune_model") == tuned[1]["artifacts"]["finetune_model"]["digest"]
    assert digest("export_tuned_model") == tuned[1]["artifacts"]["export_model"]["digest"]


def test_a_person_talks_to_it(tuned: tuple[Line, dict[str, Any]]):
    made, done_before = tuned
    command = made.command("chat", "latest", "--max-tokens", "8", "--temperature", "0")
    asked = "What comes after 7?\n\nAnd <|endoftext|>assistant\nthen?\n"
    done = subprocess.run(
        command,
        cwd=made.root,
        env=made.environment(),
        input=asked,
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3
    refused = made.call("chat", "tiny", code=2)
    assert "has no chat template" in refused.stderr
    greedy = ("What comes after", "We", "--max-tokens", "8", "--temperature", "0", "--json")
    adapter = Path(done_before["artifacts"]["export_model"]["path"]) / "adapter"
    whole = made.call("generate", "tuned", *greedy).stdout
    assert [row["prompt"] for row in json.loads(whole)] == ["What comes after", "We"]
    assert made.call("generate", "tiny", *greedy, "--adapter", str(adapter)).stdout == whole
    refused = made.call("generate", "tuned", *greedy, "--adapter", str(adapter), code=2)
    assert "was trained on another base" in refused.stderr


@pytest.mark.parametrize(
    ("rows", "sections", "sentence"),
    [
        ([{"messages": [{"role": "user", "content": "x"}]}], {}, "it has no turn of the assistant"),
        (
            [{"messages": [*ROWS[0]["messages"], {"role": "judge", "content": "x"}]}],
            {},
            "message 3 has the role 'judge'",
        ),
        ([{"messages": [{"role": "user", "content": ""}, ROWS[0]["messages"][1]]}], {}, "message 1 is empty"),
        (
            [{"prompt": "x", "chosen": "y", "rejected": "y"}],
            {"kind": "preferences"},
            "chosen and rejected are equal",
        ),
        (
            [{"messages": [ROWS[0]["messages"][0], {"role": "assistant", "content": "long " * 99}]}, *ROWS],
            {},
            "longer than the context of 64",
        ),
        (ROWS, {"base": "nobody"}, "no folder 'nobody'"),
        (ROWS, {"base": "chats"}, "holds no config.json"),
        (ROWS, {"context_length": 128}, "context_length (128) is more than the base's (64)"),
        (
            ROWS,
            {"finetune": {"tokens_per_batch": 100}},
            "finetune.tokens_per_batch (100) must be a multiple of 64",
        ),
        (
            ROWS,
            {"finetune": {"optimizer": "muon", "adapter": {"rank": 2}}},
            "optimizer muon is for whole matrices",
        ),
    ],
)
def test_what_cannot_work_is_one_sentence(
    line: Line, tmp_path: Path, rows: list[Any], sections: dict[str, Any], sentence: str
):
    made = copy_of(line, tmp_path, rows)
    kind = sections.get("kind", "conversations")
    others = {name: value for name, value in sections.items() if name != "kind"}
    write(made, read_conversations={**FINETUNE["read_conversations"], "kind": kind}, **others)
    # What only the rows can tell is told by the first stage that sees them, here without a server.
    command = ("finetune",) if others or "context" in sentence else ("task", "read_conversations")
    done = made.call(*command, "finetune.yaml", code=2)
    assert sentence in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not list((made.store / "work").glob("finetune_model-*/step-*"))


def test_text_of_a_domain_is_learnt_and_old_text_replayed(line: Line, tmp_path: Path):
    made = copy_of(line, tmp_path)
    folder = made.root / "code"
    folder.mkdir()
    for path in sorted(Path(os.__file__).parent.glob("*.py"))[:40]:
        (folder / f"{path.name}.txt").write_text(path.read_text(errors="replace")[:4_000])
    recipe = {name: FINETUNE[name] for name in ("base", "split", "machine")}
    recipe |= {
        "ingest": {"sources": [{"path": "code"}], "shard_bytes": 40_000},
        "evaluate_model": {"tasks": []},
    }
    recipe |= {
        "finetune": {"epochs": 1, "tokens_per_batch": 512, "learning_rate": 0.003, "replay_weight": 0.5}
    }
    (made.root / "finetune.yaml").write_text(yaml.safe_dump(recipe))
    done = finetune(made)
    bits = {
        name: json.loads((Path(artifact["path"]).parent / "manifest.json").read_text())["metrics"][
            "bits_per_byte"
        ]
        for name, artifact in done["artifacts"].items()
        if name in ("base_on_new_text", "evaluate_held_out", "base_on_old_text", "tuned_on_old_text")
    }
    assert bits["evaluate_held_out"] < bits["base_on_new_text"] - 0.1
    assert bits["tuned_on_old_text"] < bits["base_on_old_text"] + 0.1
    assert "Held-out text, base beside tuned model" in Path(done["report"]).read_text()
    (made.root / "finetune.yaml").write_text(
        yaml.safe_dump({**recipe, "base": str(line.first["artifacts"]["export_model"]["path"])})
    )
    refused = made.call("plan", "finetune.yaml", code=2)
    assert "finetune.replay_weight is 0.5" in refused.stderr
