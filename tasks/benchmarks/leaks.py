"""How benchmark items turn up in text: what of an item is looked for, and leaks by which the search is tried."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.task import Task

_STEMS = (
    "context",
    "premise",
    "question",
    "question_stem",
    "goal",
    "ctx",
    "query",
    "sentence",
    "problem",
    "prompt",
)
"""What data sets call the fields that a question is made of."""

KINDS = ("as rendered", "stem and choices", "JSON", "stem alone", "question and answer")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Item:
    """One item of a benchmark, raw and as lm-eval asks for it.

    Attributes:
        pairs: questions and answers as they are rendered.
        raw: the row of its data set.
        choices: answers to choose from, if there are any.
        gold: position of the right one among them, if that is known.
    """

    pairs: tuple[tuple[str, str], ...]
    raw: dict[str, Any]
    choices: tuple[str, ...]
    gold: int | None

    @property
    def fields(self) -> list[str]:
        """The texts of the row that are no choices: stem, passage and what else there is."""
        own = {choice.strip().casefold() for choice in self.choices}
        return [
            text
            for _, text in _texts(self.raw)
            if len(text.split()) > 2 and text.strip().casefold() not in own
        ]

    @property
    def stem(self) -> str:
        """The question as a person would copy it, without passage and choices."""
        texts = {name: text for name, text in _texts(self.raw) if name in _STEMS and len(text.split()) > 1}
        whole = [
            text
            for name, text in texts.items()
            if not any(other != name and text.casefold() in texts[other].casefold() for other in texts)
        ]
        return " ".join(whole) or self.pairs[0][0]


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a row, with the name of its field, in order."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for inner, item in value.items():
            yield from _texts(item, inner)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, name)


def items_of(task: "Task", pairs: dict[int, list[tuple[str, str]]]) -> dict[int, Item]:
    """The items of a task by number.

    Args:
        pairs: rendered questions and answers of each, as `tasks.benchmarks.items.item_texts` gives them.
    """
    items = {}
    for number, raw in enumerate(task.eval_docs):
        choices = task.doc_to_choice(raw) if task.config.doc_to_choice is not None else ()
        target = task.doc_to_target(raw)
        gold = target if isinstance(target, int) and 0 <= target < len(choices) else None
        items[number] = Item(tuple(pairs.get(number, [("", "")])), dict(raw), tuple(map(str, choices)), gold)
    return items


def searched(item: Item) -> Iterator[str]:
    """What of an item is looked for besides its rendering: its row as JSON, each field, and fields with choices."""
    yield json.dumps(item.raw, ensure_ascii=False, default=str)
    fields, choices = item.fields, item.choices
    yield from fields
    yield from choices
    for stem in dict.fromkeys([*fields, item.stem]):
        yield " ".join((stem, *choices))
        yield " ".join(
            (stem, *(f"{letter} {choice}" for letter, choice in zip(LETTERS, choices, strict=False)))
        )
        for choice in choices:
            yield f"{stem} {choice}"
            yield f"{stem} a {choice}"
            yield f"{stem} answer {choice}"


def leaks(item: Item) -> dict[str, str]:
    """The item as it is commonly found in text, by kind."""
    question, answer = (
        item.pairs[item.gold or 0] if item.gold is None or item.gold < len(item.pairs) else item.pairs[0]
    )
    found = {
        "as rendered": f"{question} {answer}",
        "JSON": json.dumps(item.raw, default=str),
        "stem alone": item.stem,
    }
    if item.choices:
        lettered = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
        found["stem and choices"] = "\n".join((item.stem, *lettered))
        if item.gold is not None:
            found["question and answer"] = f"Q: {item.stem}\nA: {item.choices[item.gold].strip()}"
    return found
