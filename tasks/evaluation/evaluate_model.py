"""evaluate_model: standard benchmarks with lm-eval."""

import json
import math
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError, StageFailed
from model.imports import uncollected
from model.machine import TrainingMachine
from model.stock import import_transformers, load_stock_model
from tasks.benchmarks.items import Benchmarks, fingerprint_benchmarks, item_texts, load_tasks
from tasks.engine.machine import Machine
from tasks.engine.on_ranks import call_on_ranks
from tasks.engine.ranks import Rank
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.evaluation.items import ITEMS, ITEMS_SCHEMA
from tasks.reading import in_turn, reading
from tasks.tables import write_table

SCORES = "scores.json"


class EvaluateModelConfig(Benchmarks):
    """Which benchmarks, and where their items come from."""


_CORRECT = ("acc", "exact_match", "em", "f1")
"""What lm-eval calls the figure of an item: of several choices, or of an answer that is written."""


def _gold(target: Any, pairs: list[list[Any]]) -> int | None:
    """Position of the right answer, which lm-eval gives as a position or as the text of the answer."""
    if str(target).isdecimal() and int(target) < len(pairs):
        return int(target)
    answers = [str(pair[1]).strip() for pair in pairs]
    wanted = str(target).strip()
    return answers.index(wanted) if answers.count(wanted) == 1 else None


def _item(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """One item as a row: correctness, and nats and bytes of the right answer where there is one."""
    responses = sample["filtered_resps"]
    scores = [response[0] for response in responses if isinstance(response, tuple | list)]
    if any(not math.isfinite(score) for score in scores):
        raise StageFailed(
            f"{task}: the likelihood of item {sample['doc_id']} is not finite: the model is broken"
        )
    row: dict[str, Any] = {
        "task": task,
        "item": sample["doc_id"],
        "correct": next((sample[name] for name in _CORRECT if name in sample), None),
        "gold_nats": None,
        "gold_bytes": None,
        "chance": None,
        "tied": None,
    }
    arguments = (
        list(sample["arguments"].values()) if isinstance(sample["arguments"], dict) else sample["arguments"]
    )
    pairs = [list(pair.values()) if isinstance(pair, dict) else list(pair) for pair in arguments]
    if len(scores) > 1:
        row |= {"chance": 1 / len(scores), "tied": scores.count(max(scores)) > 1}
        gold = _gold(sample["target"], pairs)
    else:
        gold = 0 if scores and len(pairs[0]) > 1 and isinstance(pairs[0][1], str) else None
    if gold is not None:
        row |= {"gold_nats": -scores[gold], "gold_bytes": len(pairs[gold][1].encode())}
    return row


def _score(task: str, rows: list[dict[str, Any]], results: dict[str, Any]) -> dict[str, Any]:
    """The figures of one task: lm-eval's own with their standard errors, chance, and bits per byte of right answers."""
    score: dict[str, Any] = {"items": len(rows)}
    for name, value in results.items():
        metric = name.split(",")[0]
        if isinstance(value, int | float) and not isinstance(value, bool) and "," in name:
            score[metric] = value
    chances = [row["chance"] for row in rows if row["chance"] is not None]
    if chances:
        score["chance"] = sum(chances) / len(chances)
        score["tied_items"] = sum(bool(row["tied"]) for row in rows)
    gold = [(row["gold_nats"], row["gold_bytes"]) for row in rows if row["gold_nats"] is not None]
    if gold:
        score["answer_bits_per_byte"] = (
            sum(nats for nats, _ in gold) / math.log(2) / sum(size for _, size in gold)
        )
    return score


@dataclass(frozen=True)
class _Requests:
    """What a task asks of the model.

    Attributes:
        items: of the task.
        number: of all questions with their answers.
        longest_answer: in tokens.
        truncated_items: items of which some request is longer than the context.
    """

    items: int
    number: int
    longest_answer: int
    truncated_items: int


def _requests(task: Any, tokenizer: Any, context_length: int, limit: int | None) -> _Requests:
    number, longest, truncated = 0, 0, 0
    texts = item_texts(task, limit)
    for pairs in texts.values():
        encoded = tokenizer([question + answer for question, answer in pairs], add_special_tokens=False)[
            "input_ids"
        ]
        answers = tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"]
        longest = max([longest, *(len(answer) + 1 for answer in answers)])
        truncated += any(len(request) > context_length for request in encoded)
        number += len(pairs)
    return _Requests(len(texts), number, longest, truncated)


def _together(parts: list[Any]) -> Any:
    """What ranks have below equal names, in the order of items, as if one had asked for all: lm-eval deals them out in turn."""
    if isinstance(parts[0], dict):
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: _together([part[name] for part in parts if name in part]) for name in names}
    return in_turn(parts)


def _benchmarks(
    config: EvaluateModelConfig, model: Any, tokenizer: Any, batch: int, device: str, rank: Rank
) -> tuple[dict[str, Any], list[Any]]:
    """Scores by benchmark, and rows of items, on the first rank; nothing on others."""
    with uncollected():
        import lm_eval
        import numpy as np
        import torch
        import torch.distributed as dist
        from lm_eval.models.huggingface import HFLM

    class Counting(HFLM):  # type: ignore[misc]
        """lm-eval's model, which says how far it is, and reads its rank's share of the items."""

        done, total = 0, 0

        def _count(self, inputs: Any) -> None:
            self.done = min(self.total, self.done + rank.count * len(inputs))
            rank.progress(self.done, self.total, "requests")

        def all_gather(self, tensor: Any) -> Any:
            # Asked for, how many requests each has: with equal numbers lm-eval pads none, and ranks may differ here.
            return torch.stack([tensor.cpu()] * rank.count)

        def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
            parts: list[Any] | None = [None] * rank.count if rank.number == dst else None
            dist.gather_object(obj, parts, dst)
            return [_together(parts)] if parts else None

        def barrier(self) -> None:
            dist.barrier()

        def _model_call(self, inps: Any, *arguments: Any, **options: Any) -> Any:
            logits = super()._model_call(inps, *arguments, **options)
            self._count(inps)
            return logits

        def _model_generate(self, context: Any, *arguments: Any, **options: Any) -> Any:
            written = super()._model_generate(context, *arguments, **options)
            self._count(context)
            return written

    scores: dict[str, Any] = {}
    items: list[dict[str, Any]] = []
    context_length = model.config.max_position_embeddings
    wrapped = Counting(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch,
        device=device,
        max_length=context_length,
    )
    with tempfile.TemporaryDirectory() as folder:
        manager, tasks = load_tasks(config, Path(folder))
        asked = [_requests(task, tokenizer, context_length, config.limit) for task in tasks]
        wrapped.total = sum(requests.number for requests in asked)
        rank.enter("step")
        for task, requests in zip(tasks, asked, strict=True):
            # lm-eval cuts the beginning of a question that does not fit, and refuses an answer that does not.
            wrapped._max_length = max(context_length, requests.longest_answer)
            # lm-eval cannot do without an item for each rank.
            is_shared = requests.items >= rank.count
            wrapped._rank, wrapped._world_size = (rank.number, rank.count) if is_shared else (0, 1)
            if rank.number and not is_shared:
                continue
            # `simple_evaluate` describes the computer, with pip and other programs, after each task.
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            task.set_fewshot_seed(seed=0)
            results = lm_eval.evaluate(
                lm=wrapped,
                task_dict=manager.load([task]),
                limit=config.limit,
                bootstrap_iters=1000,
                log_samples=True,
            )
            if results is None:
                continue
            for name, unsorted in results["samples"].items():
                samples = sorted(
                    unsorted, key=lambda sample: sample["doc_id"]
                )  # ranks come one after another
                # Filters repeat the items of a task; the first filter's stand for it.
                first = samples[0].get("filter") if samples else None
                rows = [_item(name, sample) for sample in samples if sample.get("filter") == first]
                truncated = {"truncated_items": requests.truncated_items}
                scores[name] = _score(name, rows, results["results"][name]) | truncated
                items += rows
    rank.progress(wrapped.total, wrapped.total, "requests")
    return scores, items


def evaluate_as_rank(arguments: dict[str, Any], rank: Rank) -> Metrics:
    """Evaluate the items that are this rank's; the first rank writes what all of them came to."""
    transformers = import_transformers()

    config = EvaluateModelConfig.model_validate(arguments["config"])
    folder, out = Path(arguments["model"]), Path(arguments["out"])
    machine = TrainingMachine.model_validate(arguments["machine"])
    with reading(machine, rank, "lower machine.evaluation_batch") as device:
        try:
            loaded = load_stock_model(folder)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"transformers cannot load the model: {' '.join(str(error).split())[:300]}"
            ) from error
        if not tokenizer.is_fast or tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer of the model has no tokenizer.json, or no end-of-text token: add them to its folder"
            )
        scores, items = _benchmarks(config, loaded.to(device), tokenizer, arguments["batch"], device, rank)
    return _written(out, scores, items) if rank.number == 0 else {}


def _written(out: Path, scores: dict[str, Any], items: list[Any]) -> Metrics:
    (out / SCORES).write_text(json.dumps({"benchmarks": scores}, indent=1, sort_keys=True))
    write_table(out / ITEMS, sorted(items, key=lambda row: (row["task"], row["item"])), ITEMS_SCHEMA)
    return {"benchmarks": scores}


@stage(
    libraries=(
        "lm_eval",
        "jinja2",
        "transformers",
        "torch",
        "tokenizers",
        "datasets",
        "numpy",
        "pyarrow",
        "huggingface_hub",
        "pyyaml",
        "platformdirs",
    ),
    retries=2,
    role="evaluate",
    fingerprint=fingerprint_benchmarks,
)
def evaluate_model(
    config: EvaluateModelConfig, model: Artifact, out: Path, work: Path, machine: Machine
) -> Metrics:
    """Write scores.json and items.parquet (one row for each benchmark item). Ranks share the items.

    Args:
        model: a folder that stock `transformers` loads, with safetensors and a fast tokenizer.

    Raises:
        InputError: if the folder is not such a folder, and there is something to measure.
        StageFailed: if a likelihood is not finite.
    """
    if config.is_empty:
        return _written(out, {}, [])
    arguments = {
        "config": config.model_dump(mode="json"),
        "model": str(model.path),
        "out": str(out),
        "batch": machine.evaluation_batch,
    }
    metrics: Metrics = call_on_ranks(evaluate_as_rank, arguments, machine, work)
    return metrics
