"""Break the project on purpose, one promise after the other, and see that a test notices: python -m tests.mutants.

Each mutant is one edit of a copy of the project, with the tests that must fail on it. Prints which survive, and ends
with their number as its status. `--only WORD` takes those with the word in their name.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENGINE, TEXT = "tests/tasks/engine", "tests/tasks/text"


@dataclass(frozen=True)
class Mutant:
    """An edit of one file, and the tests that must fail on it.

    Attributes:
        tests: file and expression of the tests.
        seconds: what they take at most; a mutant may make them hang.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    seconds: float = 600.0


MUTANTS = (
    Mutant(
        "code is not checked after a call",
        "tasks/engine/call.py",
        '    if stage.code_of_values(spec.config) != spec.ingredients["code"]:',
        "    if False:",
        f"{ENGINE}/test_code.py -k edited_while_it_runs",
    ),
    Mutant(
        "the store does not fsync",
        "model/files.py",
        "        os.fsync(descriptor)",
        "        pass",
        f"{ENGINE}/test_store.py -k on_disk_before",
    ),
    Mutant(
        "a young file is remembered",
        "tasks/engine/sources.py",
        "_YOUNG_NS = 2_000_000_000",
        "_YOUNG_NS = 0",
        f"{ENGINE}/test_sources.py -k young",
    ),
    Mutant(
        "ctime is not looked at",
        "tasks/engine/sources.py",
        "status.st_mtime_ns, status.st_ctime_ns)\n        young",
        "status.st_mtime_ns, 0)\n        young",
        f"{ENGINE}/test_sources.py -k remembered",
    ),
    Mutant(
        "--rehash trusts the memory",
        "tasks/engine/sources.py",
        "if not self.rehash and not young:",
        "if not young:",
        f"{ENGINE}/test_sources.py -k remembered",
    ),
    Mutant(
        "work folders are not private",
        "tasks/engine/call.py",
        "mkdir(mode=0o700, ",
        "mkdir(",
        f"{ENGINE}/test_store.py -k owners_alone",
    ),
    Mutant(
        "a full disk has no sentence",
        "tasks/engine/failures.py",
        "    if isinstance(error, OSError) and _is_full(error):",
        "    if False:",
        f"{ENGINE}/test_damage.py -k full_disk",
    ),
    Mutant(
        "the report does not escape",
        "flows/views/report.py",
        "autoescape=True",
        "autoescape=False",
        "tests/flows/test_report.py",
    ),
    Mutant(
        "the server listens everywhere",
        "flows/serving/server.py",
        "TrustedHostMiddleware(app, allowed_hosts=names_of(host)), host=host,",
        'TrustedHostMiddleware(app, allowed_hosts=["*"]), host="0.0.0.0",',
        "tests/end_to_end/test_serve.py -k nobody_gets_in",
    ),
    Mutant(
        "pickles of weights are loaded",
        "model/stock.py",
        "use_safetensors=True",
        "use_safetensors=None",
        "tests/tasks/evaluation/test_evaluate.py -k pickle",
    ),
    Mutant(
        "a record of a checkpoint that rotted is believed",
        "model/checkpoint.py",
        "        record = read_record(folder / MANIFEST)",
        "        record = json.loads((folder / MANIFEST).read_text())",
        "tests/model/test_train.py -k damaged_checkpoint",
    ),
    Mutant(
        "a training waits for a tracker",
        "model/trackers.py",
        "        self.thread.join(max(0.0, deadline - time.monotonic()))",
        "        self.thread.join()",
        "tests/model/test_trackers.py -k hangs",
        60.0,
    ),
    Mutant(
        "DeepSpeed is told anything",
        "model/machine.py",
        "        if name not in allowed | follows:",
        "        if False:",
        "tests/model/test_train.py -k persons_deepspeed",
    ),
    Mutant(
        "a rank reads what is another's",
        "tasks/reading.py",
        "    return items[rank.number :: rank.count]",
        "    return items[: len(items) // rank.count + 1]",
        f"{ENGINE}/test_ranks.py -k shared",
    ),
    Mutant(
        "a checkpoint that cannot be read now is taken for damaged",
        "model/checkpoint.py",
        "    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, KeyError, TypeError):",
        "    except (OSError, ValueError, KeyError, TypeError):",
        "tests/model/test_train.py -k does_not_answer",
    ),
    Mutant(
        "that a rank lost another one is told in place of why",
        "tasks/engine/ranks.py",
        "(item[1][2].startswith(_LOST), item[1][1]",
        "(item[1][1]",
        "tests/model/test_train.py -k whose_fault",
    ),
    Mutant(
        "a node that is silent is there for ever",
        "tasks/engine/team.py",
        "            if not is_held(path) and",
        "            if False and",
        f"{ENGINE}/test_team.py -k falls_silent",
    ),
    Mutant(
        "a sample draws from what was drawn already",
        "tasks/tokens/train_tokenizer.py",
        "            draws = _draws(digests[place], piece)",
        "            draws = digests[place]",
        "tests/tasks/tokens/test_tokenizer.py -k large_document",
    ),
    Mutant(
        "only the first rank is seen to move",
        "tasks/engine/ranks.py",
        "        if time.monotonic() - self.told_at > _NEWS_SECONDS:",
        "        if False:",
        f"{ENGINE}/test_ranks.py -k seen_to_move",
    ),
    Mutant(
        "a run needs its training tried here, wherever it is",
        "flows/runs/speed.py",
        "        if has_ranks_elsewhere(place.machine):",
        "        if False:",
        "tests/flows/runs/test_forecast.py -k elsewhere",
    ),
    Mutant(
        "a hang is not noticed",
        "tasks/engine/on_ranks.py",
        "    if seconds <= hang_seconds * patience:",
        "    if seconds <= 300 * hang_seconds:",
        f"{ENGINE}/test_store.py -k hanging",
        45.0,
    ),
    Mutant(
        "gc takes what a running run needs",
        "flows/runs/inspect.py",
        'if i >= oldest or run.status == "running"',
        "if i >= oldest",
        f"{ENGINE}/test_store.py -k older_run",
    ),
    Mutant(
        "gc takes what is being built",
        "flows/runs/inspect.py",
        "                if free:\n",
        "                if True:\n",
        f"{ENGINE}/test_store.py -k being_built",
    ),
    Mutant(
        "children import from the caller's folder",
        "tasks/engine/process.py",
        '        "PYTHONSAFEPATH": "1",\n',
        "",
        f"{ENGINE}/test_store.py -k childs_path",
    ),
    Mutant(
        "run.json is written in place",
        "model/files.py",
        "        os.replace(building, path)",
        "        path.write_text(text)",
        f"{ENGINE}/test_store.py -k written_over",
    ),
    Mutant(
        "inputs are not compared with their manifests",
        "tasks/engine/store.py",
        "        if faults:\n            self.set_aside(result)",
        "        if False:\n            self.set_aside(result)",
        f"{ENGINE}/test_damage.py -k flipped_bit",
    ),
    Mutant(
        "manifests have no checksum",
        "model/files.py",
        "record.pop(CHECKSUM, None) != _checksum(record)",
        "record.pop(CHECKSUM, None) is None",
        f"{ENGINE}/test_damage.py -k every_kind",
    ),
    Mutant(
        "an import without source is passed over",
        "tasks/engine/code.py",
        "        if path is None:\n            where",
        "        if path is None and importer:\n            continue\n        if path is None:\n            where",
        f"{ENGINE}/test_code.py -k without_a_source",
    ),
    Mutant(
        "bytecode is compared by time",
        "tasks/engine/build.py",
        '    check_bytecode(spec.ingredients["code"])\n',
        "",
        f"{ENGINE}/test_code.py -k equal_times",
    ),
    Mutant(
        "a run claims nothing",
        "flows/runs/record.py",
        '        self.record["claimed"][node.name] = {',
        '        self.record["claimed"] = {} if True else {',
        f"{ENGINE}/test_damage.py -k 'killed_with or beside_a_run'",
    ),
    Mutant(
        "a killed rank is final",
        "tasks/engine/ranks.py",
        '        return "retry", f"{_LOST}',
        '        return "stage", f"{_LOST}',
        "tests/model/test_train.py -k whose_fault",
    ),
    Mutant(
        "SIGTERM waits for the end of a step",
        "model/train.py",
        "            if number and self.heard.ask()[0]:",
        "            if False:",
        "tests/model/test_train.py -k within_a_step",
    ),
    Mutant(
        "secrets are known by name alone",
        "tasks/engine/secrets.py",
        "            elif _WITH_PASSWORD.match(value):",
        "            elif False:",
        f"{ENGINE}/test_secrets.py -k address",
    ),
    Mutant(
        "the terminal takes commands",
        "flows/command/say.py",
        "    return _COMMANDS.sub(",
        "    return text or _COMMANDS.sub(",
        "tests/flows/command/test_say.py",
    ),
    Mutant(
        "pipes are read",
        "tasks/engine/sources.py",
        "    return path.is_file() or not path.exists()",
        "    return True",
        f"{TEXT}/test_hostile.py -k sees_no_pipe",
    ),
    Mutant(
        "a slow document holds up all",
        "tasks/text/alarms.py",
        "signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)",
        "signal.setitimer(signal.ITIMER_REAL, 60 + seconds, 1.0)",
        f"{TEXT}/test_hostile.py -k takes_too_long",
        45.0,
    ),
    Mutant(
        "a query reads any file",
        "flows/runs/fates.py",
        "SET enable_external_access = false; ",
        "",
        "tests/end_to_end/test_line.py -k query_only_asks",
    ),
    Mutant(
        "copies of what was trained on judge",
        "flows/runs/worth.py",
        "identifier not in trained_on and groups_of[identifier] not in taken",
        "identifier not in trained_on",
        "tests/flows/test_ablate.py -k judges_nothing",
    ),
    Mutant(
        "a classifier may be another file",
        "tasks/text/classifiers.py",
        "is_same = file_digest(Path(path)) == digest",
        "is_same = Path(path).is_file()",
        f"{TEXT}/test_classifiers.py -k by_its_content",
    ),
    Mutant(
        "a changed text changes its side",
        "tasks/text/deduplicate.py",
        "_set_sides(ranks, of_ids, np.array(ids, np.uint64))",
        '_set_sides(ranks, of_ids, table.column("text_digest").to_numpy())',
        f"{TEXT}/test_documents.py -k somebody_changed",
    ),
    Mutant(
        "copies are taken for boilerplate",
        "tasks/text/filters/repeated_lines.py",
        "return left if len(left) >= (1 - self.how.max_removed) * len(text) else text",
        "return left",
        f"{TEXT}/test_repeated_lines.py -k for_deduplicate_to_judge",
    ),
    Mutant(
        "the reference of DPO is of another type",
        "tasks/training/reference_log_probabilities.py",
        '        if config.dtype == "bfloat16":',
        "        if False:",
        "tests/model/test_finetune.py -k of_no_preference",
    ),
    Mutant(
        "what is alike may straddle the split",
        "tasks/text/likeness.py",
        "_LEAST_SHARE = 2, 0.2",
        "_LEAST_SHARE = 2, 0.9",
        f"{TEXT}/test_documents.py -k alike",
    ),
    Mutant(
        "every benchmark has a veto",
        "tasks/evaluation/intervals.py",
        'if of["p_worse"] > level / (len(ordered) - i):',
        'if of["p_worse"] > level:',
        "tests/tasks/evaluation/test_compare.py -k seldom",
    ),
    Mutant(
        "raw fields are not looked for",
        "tasks/benchmarks/leaks.py",
        "    yield json.dumps(item.raw, ensure_ascii=False, default=str)\n    fields",
        "    return\n    fields",
        f"{TEXT}/test_documents.py -k decontaminate_finds",
    ),
    Mutant(
        "the last weights are kept instead of the best",
        "model/best.py",
        "    if best is not None and measured >= best:",
        "    if False:",
        "tests/model/test_train.py -k best_weights_are_kept",
    ),
    Mutant(
        "averages are not resumed",
        "model/checkpoint.py",
        "            self.masters.fill(self.averages, saved.reader(_AVERAGE))",
        "            pass",
        "tests/model/test_train.py -k averages",
    ),
    Mutant(
        "moments are not resumed",
        "model/checkpoint.py",
        "            self.masters.fill(values, saved.reader(kind))",
        "            pass",
        "tests/model/test_train.py -k another_stage",
    ),
    Mutant(
        "a piece of a weight begins elsewhere",
        "model/masters.py",
        "pieces.append(Piece(rank, first - offset, last - offset, first - rank * share))",
        "pieces.append(Piece(rank, 0, last - first, first - rank * share))",
        "tests/model/test_train.py -k another_stage",
    ),
    Mutant(
        "a step that is not finite moves weights",
        "model/train.py",
        "        is_broken = (~torch.isfinite(judged[:2])).any().to(judged)",
        "        is_broken = torch.zeros_like(judged[2])",
        "tests/model/test_spikes.py -k left_out",
    ),
    Mutant(
        "a spike moves weights",
        "model/train.py",
        '        is_spike = judged[2] if config.spikes == "skip" else torch.zeros_like(judged[2])',
        "        is_spike = torch.zeros_like(judged[2])",
        "tests/model/test_spikes.py -k left_out",
    ),
    Mutant(
        "a killed server of a run stays dead",
        "flows/serving/server.py",
        "            stack.enter_context(server.looked_after())",
        "            stack.callback(process.stop, server.child, _STOP_SECONDS)",
        "tests/flows/serving/test_server.py -k killed",
    ),
    Mutant(
        "groups that ZeRO does not mean move, too",
        "model/optimizer.py",
        "            optimizer.param_groups = [group for group in groups if id(group) in now]",
        "            pass",
        "tests/model/test_train.py -k agree",
    ),
    Mutant(
        "a matrix on a border is orthogonalised in pieces",
        "model/optimizer.py",
        "        self.travels = any(piece.rank != owner for matrix, owner in pairs for piece in matrix.pieces)",
        "        self.travels = False",
        "tests/model/test_train.py -k agree",
    ),
    Mutant(
        "documents of text see each other",
        "model/objectives/text.py",
        'ends=batch.get("ends")',
        "ends=None",
        "tests/model/test_attention.py",
    ),
    Mutant(
        "a layout need not fit",
        "model/budget.py",
        "needs.total <= _SHARE_OF_MEMORY * memory_bytes",
        "True",
        "tests/model/test_budget.py -k cheapest",
    ),
    Mutant(
        "goodput forgets killed attempts",
        "model/goodput.py",
        "            former[-1][1] = max(former[-1][1], alive.stat().st_mtime)",
        "            pass",
        "tests/model/test_train.py -k goodput",
    ),
    Mutant(
        "masters are made of rounded weights",
        "model/first_weights.py",
        "            masters.fill_one_by_one(self.trained.items())",
        "            pass",
        "tests/model/test_train.py -k bfloat16",
    ),
    Mutant(
        "a share of the documents is taken by chance of their order",
        "tasks/text/document_shards.py",
        "        if text_digest(record.text) >= source.share * 2**64:",
        "        if text_digest(str(read_bytes)) >= source.share * 2**64:",
        f"{TEXT}/test_formats.py -k share",
    ),
    Mutant(
        "a piece that changed while it was read is published",
        "tasks/text/readers.py",
        "    if now != (size, sha256):",
        "    if False:",
        f"{TEXT}/test_ingest.py -k while_it_is_read",
    ),
    Mutant(
        "rows of a range are counted from its beginning",
        "tasks/text/row_files.py",
        "        reading.row, reading.size, reading.is_range = part.first_row - 1, part.size, True",
        "        reading.size, reading.is_range = part.size, True",
        f"{TEXT}/test_pieces.py -k large_file",
    ),
    Mutant(
        "the place of a source is in the key of its pieces",
        "tasks/text/pieces.py",
        'shared = {"source": canonical(source), "shard_bytes": shard_bytes}',
        'shared = {"source": source.model_dump(mode="json"), "shard_bytes": shard_bytes}',
        f"{TEXT}/test_ingest.py -k not_of_place",
    ),
    Mutant(
        "a worker with other libraries builds",
        "tasks/engine/worker.py",
        "        if own != version:",
        "        if False:",
        f"{ENGINE}/test_leases.py -k differs",
    ),
    Mutant(
        "a worker outlives its driver",
        "tasks/engine/worker.py",
        "        if not is_held(Store(spec.store).lease(stage.name, spec.key)):",
        "        if False:",
        f"{ENGINE}/test_leases.py -k driver",
    ),
    Mutant(
        "two take a stale lease",
        "tasks/engine/leases.py",
        "    except FileNotFoundError:\n        return False\n    return mine or",
        "    except FileNotFoundError:\n        return True\n    return mine or",
        f"{ENGINE}/test_leases.py -k many",
    ),
    Mutant(
        "runs of equal keys end at the parts of a buffer",
        "tasks/text/equal_keys.py",
        "parts = keys >> np.uint64(64 - self.bits) if self.bits",
        "parts = digests >> np.uint64(64 - self.bits) if self.bits",
        f"{TEXT}/test_documents.py -k datatrove",
    ),
    Mutant(
        "an average keeps the random weights",
        "model/average.py",
        "max(self.least_pull, 1 / steps)",
        "self.least_pull",
        "tests/model/test_train.py -k random_weights",
    ),
    Mutant(
        "a step from elsewhere is not in the key",
        "tasks/engine/stage.py",
        "*(config.modules if config else ())",
        "",
        f"{TEXT}/test_filters.py -k ones_own",
    ),
    Mutant(
        "what lies beside a step from elsewhere is not in the key",
        "tasks/engine/code.py",
        "any(_is_in(folder, top) for folder in beside)",
        "False",
        f"{TEXT}/test_filters.py -k every_letter",
    ),
    Mutant(
        "an n-gram goes on in the next text",
        "tasks/ngrams.py",
        "inside = np.arange(n, n + len(hashes)) <= ends",
        "inside = np.arange(n, n + len(hashes)) <= ends + 1",
        f"{TEXT}/test_filters.py -k across_two",
    ),
    Mutant(
        "repetition passes what is near a limit",
        "tasks/text/filters/gopher_repetition.py",
        "self.doubtful[n] = most > limit * self.sizes",
        "self.doubtful[n] = most > 2 * limit * self.sizes",
        f"{TEXT}/test_filters.py -k datatrove",
    ),
    Mutant(
        "a damaged stream of bzip2 ends the file",
        "tasks/text/records.py",
        'raise EOFError("the file ends in the middle of a stream")',
        "return 0",
        f"{TEXT}/test_more_formats.py -k bzip2",
    ),
    Mutant(
        "pages before a torn member are lost",
        "tasks/text/archives.py",
        "        if last is not None:\n            is_whole",
        "        if last is not None and stream.error is None:\n            is_whole",
        f"{TEXT}/test_more_formats.py -k before_a_damaged",
    ),
    Mutant(
        "a phase forgets what was read before it",
        "model/mixture.py",
        "own, before[of_stream] + self.before[number][own]",
        "own, before[of_stream]",
        "tests/model/test_batches.py -k phase_by_phase",
    ),
    Mutant(
        "a cap on repetitions caps nothing",
        "tasks/training/mixture.py",
        "if rest * weight / total > left[name] + 1e-9",
        "if rest * weight / total > 100 * left[name]",
        "tests/tasks/training/test_mixture.py -k more_often",
    ),
)


def survives(mutant: Mutant) -> bool:
    """Whether its tests pass all the same."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        ignored = shutil.ignore_patterns("__pycache__", ".*", "store", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=ignored)
        path = copy / mutant.file
        text = path.read_text()
        if mutant.old not in text:
            raise SystemExit(
                f"{mutant.name}: {mutant.file} does not hold {mutant.old!r} any more: mend tests/mutants.py"
            )
        path.write_text(text.replace(mutant.old, mutant.new, 1))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        try:
            done = subprocess.run(
                [*command, *shlex.split(mutant.tests)],
                cwd=copy,
                env=environment,
                capture_output=True,
                text=True,
                timeout=mutant.seconds,
            )
        except subprocess.TimeoutExpired:
            return False
        if done.returncode not in (0, 1):
            raise SystemExit(
                f"{mutant.name}: its tests did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return done.returncode == 0


def main() -> int:
    """Try every mutant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="a word in the name of a mutant")
    given = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if given.only in mutant.name]
    survivors = []
    for mutant in chosen:
        survived = survives(mutant)
        survivors += [mutant.name] * survived
        print(f"{'SURVIVES' if survived else 'killed  '}  {mutant.name}", flush=True)
    print(f"{len(survivors)} of {len(chosen)} survive")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(main())
