"""The whole line on a small corpus: raw text to a benchmarked model, through the real command."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from model.files import read_json
from tests.end_to_end.conftest import Line
from tests.waiting import ASKING_A_SERVER, HANGING_SECONDS, wait_until

pytestmark = pytest.mark.end_to_end

STAGES = [
    "ingest",
    "clean",
    "minhash",
    "find_copies",
    "find_duplicates",
    "deduplicate",
    "index_benchmarks",
    "decontaminate",
    "split",
    "train_tokenizer",
    "tokenize",
    "train_model",
    "export_model",
    "evaluate_held_out",
    "evaluate_model",
]
MAP_STAGES = ["clean", "minhash", "decontaminate", "split", "tokenize"]


def test_every_stage_has_a_result(line: Line):
    first = line.first
    assert sorted(first["artifacts"]) == sorted(STAGES)
    assert all(not artifact["cached"] for artifact in first["artifacts"].values())
    assert 0 < first["results"]["bits_per_byte"] < 8
    assert first["results"]["step_seconds"] > 0
    score = first["results"]["benchmarks"]["sciq"]
    assert score["items"] == 10
    assert score["chance"] == 0.25
    assert {"acc", "acc_stderr", "answer_bits_per_byte"} <= set(score)
    assert Path(first["report"]).read_text().startswith("<!doctype html>")


def test_a_second_run_is_cached_and_shows_so_in_prefect(line: Line):
    # A name of its own: other tests run on this server at the same time.
    second = line.run("--set", "name=again")
    assert all(artifact["cached"] for artifact in second["artifacts"].values())
    assert second["resumed_from_step"] is None
    assert second["results"] == line.first["results"]
    named = {"flow_runs": {"name": {"like_": "pretrain again "}}}
    (run,) = httpx.post(f"{line.server}/flow_runs/filter", json=named, timeout=HANGING_SECONDS).json()
    assert run["state"]["type"] == "COMPLETED"

    def states() -> dict[str, str]:
        tasks = httpx.post(f"{line.server}/task_runs/filter", json=named, timeout=HANGING_SECONDS).json()
        return {task["name"]: task["state"]["name"] for task in tasks}

    # The server takes the states of tasks from its queue of events, a moment after the run has ended.
    wait_until(
        lambda: states() == {f"{stage} (cached)": "Cached" for stage in STAGES},
        "every task is told as cached",
        every_seconds=ASKING_A_SERVER,
    )


def test_a_cached_run_needs_no_server_and_no_prefect(line: Line, tmp_path: Path):
    (tmp_path / "prefect.py").write_text("raise ImportError('Prefect is not needed here')\n")
    alone = Line(line.root, None)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {**alone.environment(), "PYTHONPATH": path}
    command = alone.command("run", "recipe.yaml", "--json")
    done = subprocess.run(command, cwd=alone.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(row["cached"] for row in json.loads(done.stdout.splitlines()[-1])["artifacts"].values())


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("text/junk.txt", [("ingest", "read"), ("clean", "dropped")]),
        ("text/contaminated.txt", [("decontaminate", "dropped"), ("split", "dropped")]),
    ],
)
def test_why_tells_the_fate_of_a_document(line: Line, document: str, expected: list):
    verdicts = json.loads(line.call("why", "latest", document, "--json").stdout)
    found = [(verdict["stage"], verdict["outcome"]) for verdict in verdicts]
    assert [pair for pair in expected if pair in found] == expected


def test_a_document_is_asked_for_by_words_of_its_text(line: Line):
    words = (line.corpus / "speech-06.txt").read_text().split()
    piece = (line.corpus / "speech-06.txt").read_text()[500:700]
    altered = " ".join("other" if i % 17 == 0 else word for i, word in enumerate(words[50:150]))
    for text in (piece, altered):
        verdicts = json.loads(line.call("why", "latest", text, "--json").stdout)
        assert verdicts[0]["detail"].startswith("text/speech-06.txt,")
    misspelt = line.call("why", "latest", "text/speach-06.txt", code=2).stderr
    assert "near are text/speech-06.txt" in misspelt
    several = line.call("why", "latest", "the United States", code=2).stderr
    assert "documents have in their text" in several


def test_the_documents_of_a_run_are_browsed_counted_and_queried(line: Line):
    dropped = json.loads(line.call("browse", "latest", "--dropped-by", "repetition", "--json").stdout)
    assert [row["id"] for row in dropped] == ["text/junk.txt"]
    assert dropped[0]["measured"] < dropped[0]["allowed"] == 0.1
    assert dropped[0]["field"] == "clean.repetition.min_distinct"
    printed = line.call("browse", "latest", "--kept", "-n", "3").stdout
    page = Path(printed.splitlines()[-1])
    assert page.name == "samples.html"
    assert page.read_text().count("<section>") == 3
    assert "dropped by" not in page.read_text()
    unknown = line.call("browse", "latest", "--dropped-by", "magic", code=2).stderr
    assert "clean.repetition, deduplicate" in unknown.replace("decontaminate, ", "").replace("\n", " ")

    tables = json.loads(line.call("stats", "latest", "--json").stdout)
    (source,) = tables["by source"]
    assert source["documents"] == 18
    assert source["duplicates"] == 1
    assert sum(row["documents"] for row in tables["what was dropped"]) == source["documents"] - source["kept"]
    assert tables["by language"][0]["language"] == "en"
    assert "by source" in line.call("stats", "latest").stdout

    query = "select step, count(*) as n from documents where not kept group by step order by step"
    rows = json.loads(line.call("sql", "latest", query, "--json").stdout)
    assert {row["step"] for row in rows} == {"clean.repetition", "deduplicate", "decontaminate"}
    assert "Catalog Error" in line.call("sql", "latest", "select * from nowhere", code=2).stderr
    clusters = "select cluster_size, count(*) as n from documents where cluster is not null group by all"
    assert json.loads(line.call("sql", "latest", clusters, "--json").stdout) == [{"cluster_size": 2, "n": 2}]
    # The report shows some of them behind the bars.
    report = Path(line.first["report"]).read_text()
    assert "text/junk.txt" in report
    assert "Buy now!!!" in report

    text = "select text from kept_text where id = 'text/special.txt'"
    assert "<|endoftext|>" in line.call("sql", "latest", text).stdout


def test_a_query_only_asks(line: Line, tmp_path: Path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    before = {path: path.read_bytes() for path in line.store.rglob("*.parquet")}
    shard = next(iter(before))
    for query in (
        f"COPY (select 1 as a) TO '{shard}'",
        f"COPY (select 1 as a) TO '{tmp_path}/copied.csv'",
        f"ATTACH '{tmp_path}/own.db' AS own",
        f"select * from read_text('{secret}')",
        f"select * from read_text('{line.store}/runs/*/run.json')",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        f"select 1; COPY (select 1) TO '{shard}'",
        "",
        ";",
        "/* nothing */",
    ):
        done = line.call("sql", "latest", query, code=2)
        assert "error: " in done.stderr
        assert "a secret" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in line.store.rglob("*.parquet")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]
    odd = line.call("sql", "latest", "select 1 as a, 2 as a, 'nan'::double as b", "--json").stdout
    assert json.loads(odd) == [{"a": 1, "a_2": 2, "b": None}]
    printed = line.call("sql", "latest", "select range from range(3000000)", "-n", "2").stdout
    assert printed.splitlines()[-1] == "2,999,998 more rows: -n 3000000"
    assert line.call("sql", "latest", "select 1 where false").stdout.strip() == "no rows"


def test_a_long_query_ends_on_ctrl_c(line: Line):
    endless = "select count(*) from range(1000000000000) t(a) where a % 7 = 3"
    process = subprocess.Popen(line.command("sql", "latest", endless), cwd=line.root, env=line.environment())
    wait_until(lambda: len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 2, "the query", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(HANGING_SECONDS) == 130


def test_one_of_two_near_duplicates_stays(line: Line):
    fates = {}
    for document in ("text/near.txt", "text/speech-03.txt"):
        verdicts = json.loads(line.call("why", "latest", document, "--json").stdout)
        fates[document] = next(verdict for verdict in verdicts if verdict["stage"] == "deduplicate")
    dropped = [document for document, verdict in fates.items() if verdict["outcome"] == "dropped"]
    assert len(dropped) == 1
    survivor = next(document for document in fates if document not in dropped)
    assert survivor in fates[dropped[0]]["detail"]


def test_what_cannot_be_read_is_counted_and_named(line: Line):
    errors = (Path(line.first["artifacts"]["ingest"]["path"]) / "figures" / "errors.jsonl").read_text()
    named = {"source": "text", "where": "latin.txt", "error": "not UTF-8 at byte 3"}
    assert json.loads(errors) == {**named, "rows": 1, "bytes": 12, "line": None}


def test_text_that_spells_a_special_token_stays_text(line: Line):
    from model.tokens import open_tokens

    store, manifest = line.store, Path(line.first["artifacts"]["tokenize"]["path"]).parent / "manifest.json"
    n_documents = ends = 0
    for shard in json.loads(manifest.read_text())["shards"]:
        for side in ("train", "validation"):
            tokens = open_tokens(store / "shards" / "tokenize" / shard["key"] / "out" / f"{side}.arrow")
            n_documents += tokens.header.n_documents
            ends += int((tokens.ids == tokens.header.end_of_text_id).sum())
    assert n_documents == ends > 10


def test_one_file_added_builds_the_shards_next_to_it_only(line: Line, tmp_path: Path, speeches: list[Path]):
    grown = Line(tmp_path / "grown", line.server)
    shutil.copytree(line.root, grown.root, symlinks=True)
    (grown.corpus / "speech-06b.txt").write_text(speeches[101].read_text()[3_000:9_000])
    rows = grown.plan()
    assert rows["ingest"]["state"] == "run"
    assert "1 files added" in rows["ingest"]["reason"]
    assert rows["index_benchmarks"]["state"] == "cached"
    runs = grown.store / "runs"
    known = {path.name for path in runs.iterdir()}
    command = grown.command("run", "recipe.yaml")
    process = subprocess.Popen(command, cwd=grown.root, env=grown.environment(), start_new_session=True)

    def split() -> dict | None:
        records = [read_json(path / "run.json") for path in runs.iterdir() if path.name not in known]
        return next((record["stages"] for record in records if record and "split" in record["stages"]), None)

    after = wait_until(split, "the split of the grown text", process)
    process.terminate()
    process.wait(HANGING_SECONDS)
    for stage in MAP_STAGES[:-1]:
        assert 1 <= after[stage]["shards"]["built"] <= 3, stage
        assert after[stage]["shards"]["reused"] >= 2, stage


def test_plan_says_why(line: Line):
    rows = line.plan("--set", "train_model.seed=3")
    assert (rows["train_model"]["state"], rows["train_model"]["reason"]) == (
        "run",
        "config train_model.seed from 0 to 3",
    )
    assert rows["train_model"]["seconds"] > 0
    assert rows["export_model"]["state"] == "depends"
    assert rows["tokenize"]["state"] == "cached"
    rows = line.plan("--set", "clean.repetition=off")
    assert rows["clean"]["state"] == "run"
    assert rows["minhash"]["state"] == "depends"
    assert rows["minhash"]["reason"].startswith("on clean")


def test_the_exported_model_loads_with_stock_transformers(line: Line):
    import torch
    import transformers

    folder = line.first["artifacts"]["export_model"]["path"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("The state of the Union.")["input_ids"]) == "The state of the Union."
    out = model.generate(torch.tensor([[tokenizer.eos_token_id]]), max_new_tokens=5, do_sample=False)
    assert out.shape == (1, 6)


def test_generate_and_report_and_doctor(line: Line):
    assert line.call("generate", "latest", "The people", "--max-tokens", "5").stdout.startswith("The people")
    assert Path(line.call("report").stdout.strip()).is_file()
    done = subprocess.run(
        line.command("doctor"),
        env=line.environment(),
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
    )
    assert "Prefect server: " in done.stdout
    assert "DeepSpeed" in done.stdout


def test_task_runs_one_stage_here(line: Line):
    done = line.call("task", "clean", "recipe.yaml", "--force")
    assert "clean" in done.stdout
    assert '"kept"' in done.stdout


def test_task_copies_what_it_made(line: Line, tmp_path: Path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    line.call("task", "train_tokenizer", "recipe.yaml", "--out", str(whole))
    built = Path(line.first["artifacts"]["train_tokenizer"]["path"])
    assert (whole / "tokenizer.json").read_bytes() == (built / "tokenizer.json").read_bytes()
    line.call("task", "clean", "recipe.yaml", "--shard", "1", "--out", str(part))
    assert [path.name for path in (part / "shards").iterdir()] == ["00001"]
    assert (
        "not an empty folder" in line.call("task", "clean", "recipe.yaml", "--out", str(part), code=2).stderr
    )


def test_task_trains_in_one_process_to_the_same_bytes(line: Line):
    digest = line.first["artifacts"]["train_model"]["digest"]
    done = line.call("task", "train_model", "recipe.yaml", "--force")
    manifest = Path(done.stdout.splitlines()[-1]).parent / "manifest.json"
    assert json.loads(manifest.read_text())["digest"] == digest


def test_a_corpus_smaller_than_one_batch(line: Line):
    larger = "train_model={tokens: 800000, tokens_per_batch: 80000}"
    done = line.call("task", "train_model", "recipe.yaml", "--set", larger, code=2)
    assert "less than one batch of train_model.tokens_per_batch 80000" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_measures_a_model_that_is_there(line: Line):
    export = line.first["artifacts"]["export_model"]["path"]
    done = line.call("evaluate", line.first["run"], "--tasks", "sciq", "--limit", "5", "--json")
    assert json.loads(done.stdout)["results"]["benchmarks"]["sciq"]["items"] == 5
    again = line.call(
        "evaluate", line.first["run"], "recipe.yaml", "--set", "evaluate_model.limit=5", "--json"
    )
    assert json.loads(again.stdout)["artifacts"]["evaluate_model"]["cached"]
    none = line.call("evaluate", export, "recipe.yaml", "--set", "evaluate_model.tasks=[]", "--json")
    assert json.loads(none.stdout)["results"]["benchmarks"] == {}
    assert "there is no folder 'nowhere'" in line.call("evaluate", "nowhere", code=2).stderr
    assert "did you mean 'sciq'" in line.call("evaluate", export, "--tasks", "scqi", code=2).stderr


def test_ablate_measures_what_a_step_of_cleaning_is_worth(line: Line):
    latest = line.call("show", "latest").stdout
    asked = ("ablate", line.first["run"], "--without", "clean.repetition", "--seeds", "2", "--json")
    done = line.call(*asked)
    assert "4 trainings of 25 steps, of which 3 are to be done" in done.stderr
    worth = json.loads(done.stdout.splitlines()[-1])
    texts = worth["texts"]
    # The one document that the step drops is in the other training text, or held out there.
    more = texts["documents"]["only without"], texts["held_out"]["without"] - texts["held_out"]["with"]
    assert sorted(more) == [0, 1]
    assert texts["documents"]["only with"] == texts["documents"]["changed"] == 0
    own = worth["differences"]["the text with it"]
    bits = line.first["results"]["bits_per_byte"]
    assert abs(own["having"] - bits) < 0.1
    assert own["noise"] > 0
    assert own["worth"] == own["without"] - own["having"]
    assert worth["sentence"].startswith("clean.repetition")
    report = (line.store / "runs" / worth["run"] / "report.html").read_text()
    assert "What clean.repetition is worth" in report
    # Its models are measured and left: the newest model is that of the run, and so is the newest run.
    assert line.call("show", "latest").stdout == latest
    assert json.loads(line.call("evaluate", "latest", "--tasks", "sciq", "--limit", "5", "--json").stdout)
    assert line.call("task", "train_1", worth["run"]).stdout


def test_quiet_prints_nothing_but_what_is_asked_for(line: Line):
    done = line.call("run", "recipe.yaml", "--quiet")
    assert done.stdout + done.stderr == ""
    done = line.call("run", "recipe.yaml", "--quiet", "--json")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
