"""evaluate_answers: what a model answers to held-out conversations, and how likely the right answer is to it."""

import json
from pathlib import Path
from typing import Any

import regex
from pydantic import Field

from model.base_config import Config
from model.chat_template import encode_conversation, fast_tokenizer
from model.errors import InputError, StageFailed
from model.machine import TrainingMachine
from model.messages import Message
from model.tokenizer import end_of_text_id, load_tokenizer
from tasks.engine.machine import Machine
from tasks.engine.on_ranks import call_on_ranks
from tasks.engine.ranks import Rank
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.evaluation.answers import ANSWERS, ANSWERS_SCHEMA
from tasks.reading import gathered, reading, share_of
from tasks.tables import read_table, write_table
from tasks.text.documents import DOCUMENTS
from tasks.text.selection import SELECTION

_FORM_SECONDS = 5.0


class EvaluateAnswersConfig(Config):
    """Which held-out conversations are answered, and how."""

    max_tokens: int = Field(64, ge=1, description="Longest answer, in tokens; greedy.")
    limit: int = Field(500, ge=1, description="Most conversations, the first ones of each group.")


def _normal(text: str) -> str:
    """Without case, outer white space and a last full stop: what counts as the same answer."""
    return " ".join(text.casefold().split()).rstrip(".")


def _formed(form: str | None, answer: str) -> float | None:
    """Whether an answer has the form that its row asks for; None if it asks for none."""
    if form is None:
        return None
    try:
        # It comes with the data, and some expressions never end.
        return float(regex.fullmatch(form, answer, timeout=_FORM_SECONDS) is not None)
    except TimeoutError:
        return 0.0
    except regex.error as error:
        raise InputError(
            f"the form {form!r} of a held-out conversation is no regular expression: {error}"
        ) from error


def _questions(documents: list[str], selection: list[str], limit: int) -> list[dict[str, Any]]:
    """Held-out conversations up to the assistant's last turn, and that turn.

    Args:
        documents: folders of their shards.
        selection: the same.
    """
    questions: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for shard, chosen in zip(map(Path, documents), map(Path, selection), strict=True):
        sides = read_table(chosen / SELECTION, ["side"]).column("side").to_pylist()
        for row, side in zip(
            read_table(shard / DOCUMENTS, ["id", "metadata"]).to_pylist(), sides, strict=True
        ):
            metadata = json.loads(row["metadata"])
            messages, group = metadata.get("messages") or metadata["chosen"], metadata.get("group", "all")
            last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
            if side == "validation" and counts.get(group, 0) < limit:
                counts[group] = counts.get(group, 0) + 1
                questions.append(
                    {
                        "id": row["id"],
                        "group": group,
                        "messages": messages[: last + 1],
                        "form": metadata.get("form"),
                    }
                )
    return questions


def _prompt_and_nats(
    loaded: Any, fast: Any, messages: list[Message], device: str
) -> tuple[list[int], float] | None:
    """Ids up to where the assistant answers, and the nats of the answer that is the last message.

    None if the answer is longer than the context: part of it would be judged by nothing.
    """
    import torch

    from model.batches import IGNORED
    from model.loss import log_probabilities

    before, _ = encode_conversation(fast, messages[:-1])
    ids, _ = encode_conversation(fast, messages)
    asked = fast.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    prompt = asked["input_ids"]
    assert prompt[: len(before)] == before
    n_answered = len(ids) - len(prompt)
    if n_answered > loaded.config.context_length:
        return None
    tokens = torch.tensor([ids[-loaded.config.context_length - 1 :]], device=device)
    targets = tokens[:, 1:].clone()
    targets[:, : tokens.shape[1] - 1 - n_answered] = IGNORED
    with torch.no_grad():
        return prompt, -log_probabilities(loaded, tokens[:, :-1], targets).item()


def _answer_row(question: dict[str, Any], answer: str, nats: float) -> dict[str, Any]:
    """A row of answers.parquet."""
    messages = question["messages"]
    expected = messages[-1]["content"].strip()
    if not nats < float("inf"):
        raise StageFailed(
            f"the likelihood of the answer to {question['id']} is not finite: the model is broken"
        )
    return {
        "id": question["id"],
        "group": question["group"],
        "question": messages[-2]["content"] if len(messages) > 1 else "",
        "expected": expected,
        "answered": answer.strip(),
        "correct": float(_normal(answer) == _normal(expected)),
        "formed": _formed(question["form"], answer.strip()),
        "nats": nats,
        "bytes": float(len(expected.encode())),
    }


def answer_as_rank(arguments: dict[str, Any], rank: Rank) -> Metrics:
    """Have the model answer the conversations that are this rank's; the first rank writes all answers."""
    from model.generate import Sampling, complete
    from model.hugging_face import load_hugging_face_folder

    config, batch = EvaluateAnswersConfig.model_validate(arguments["config"]), arguments["batch"]
    model, out = Path(arguments["model"]), Path(arguments["out"])
    rows: list[dict[str, Any]] = []
    machine = TrainingMachine.model_validate(arguments["machine"])
    with reading(machine, rank, "lower machine.evaluation_batch") as device:
        loaded = load_hugging_face_folder(model).to(device)
        tokenizer = load_tokenizer(model)
        fast = fast_tokenizer(tokenizer, chat=True)
        ends = frozenset([end_of_text_id(tokenizer)])
        sampling = Sampling(max_tokens=config.max_tokens, temperature=0)
        asked_of_all = _questions(arguments["documents"], arguments["selection"], config.limit)
        questions = share_of(asked_of_all, rank)
        rank.enter("step")
        done = 0

        def tell() -> None:
            rank.progress(min(len(asked_of_all), rank.count * done), len(asked_of_all), "conversations")

        for start in range(0, len(questions), batch):
            asked: list[tuple[dict[str, Any], list[int], float]] = []
            for question in questions[start : start + batch]:
                found = _prompt_and_nats(loaded, fast, question["messages"], device)
                if found:
                    asked.append((question, *found))
                tell()
            prompts = [prompt for _, prompt, _ in asked]
            answers = complete(loaded, tokenizer, prompts, sampling, ends, tell) if prompts else []
            for (question, _, nats), answer in zip(asked, answers, strict=True):
                rows.append(_answer_row(question, answer, nats))
            done = min(len(questions), start + batch)
            tell()
        rows = gathered(rank, rows)
    if rank.number:
        return {}
    write_table(out / ANSWERS, rows, ANSWERS_SCHEMA)
    groups: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["group"] for row in rows):
        correct = [row["correct"] for row in rows if row["group"] == name]
        groups[name] = {"conversations": len(correct), "correct": sum(correct) / len(correct)}
    return {"conversations": len(rows), "too_long": len(asked_of_all) - len(rows), "groups": groups}


@stage(
    libraries=("torch", "transformers", "tokenizers", "jinja2", "safetensors", "numpy", "pyarrow", "regex"),
    role="evaluate",
)
def evaluate_answers(
    config: EvaluateAnswersConfig,
    model: Artifact,
    documents: Artifact,
    selection: Artifact,
    out: Path,
    work: Path,
    machine: Machine,
) -> Metrics:
    """Write answers.parquet: the greedy answer to each held-out conversation, is it the expected one, and the nats of that.

    Ranks share the conversations. Those whose expected answer is longer than the context of the model are left out, and counted.

    Args:
        model: a Hugging Face folder, such as export_model writes.

    Raises:
        StageFailed: if a likelihood is not finite.
    """
    arguments = {
        "config": config.model_dump(mode="json"),
        "model": str(model.path),
        "documents": [str(shard) for shard in documents.shards],
        "selection": [str(shard) for shard in selection.shards],
        "out": str(out),
        "batch": machine.evaluation_batch,
    }
    metrics: Metrics = call_on_ranks(answer_as_rank, arguments, machine, work)
    return metrics
