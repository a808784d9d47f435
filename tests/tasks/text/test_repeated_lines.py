"""Lines that come back in document after document: counted over all shards, removed from all, and a copy is no boilerplate."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.pretrain import graph
from flows.recipe.recipe import Recipe
from tasks.engine.stage import Artifact, Shard
from tasks.tables import read_json_lines, read_table
from tasks.text.clean import CleanConfig, clean
from tasks.text.count_lines import CountLinesConfig, count_lines
from tasks.text.find_repeated_lines import FindRepeatedLinesConfig, find_repeated_lines
from tasks.text.lines import REPEATED, hash_line
from tests.tasks.text.test_documents import verdicts, write_shard

MENU, FOOTER = "Home | Products | About us | Contact", "Copyright 2024 Bread and Sons, all rights reserved"


def pages(n: int, first: int = 0) -> dict[str, str]:
    body = "The loaf of day {i} was the {i}th that week,\nand nobody ate it before day {j}.\n"
    return {
        f"page-{i}": f"{MENU}\n\n{(body * 3).format(i=i, j=i + 2)}\n   {FOOTER}  \n"
        for i in range(first, first + n)
    }


def boilerplate_of(
    folder: Path, shards: list[dict[str, str]], min_documents: int
) -> tuple[Artifact, list[Path]]:
    """Result of find_repeated_lines for these shards of texts, and the shards."""
    written, counted = [], []
    for place, texts in enumerate(shards):
        written.append(write_shard(folder / f"in-{place}", texts))
        counted.append(folder / f"counted-{place}")
        count_lines.fn(CountLinesConfig(min_characters=12), documents=Shard(written[-1]), out=counted[-1])
    out = folder / "repeated"
    out.mkdir()
    config = FindRepeatedLinesConfig(min_documents=min_documents)
    find_repeated_lines.fn(config, lines=Artifact(folder, tuple(counted)), out=out)
    return Artifact(out), written


def cleaned(folder: Path, repeated: Artifact, shard: Path, **fields: Any) -> list[dict]:
    config = CleanConfig.model_validate({"repeated_lines": {"min_documents": 12, **fields}})
    out = folder / f"cleaned-{shard.name}"
    clean.fn(config, documents=Shard(shard), repeated=repeated, out=out)
    assert all(verdict["kept"] for verdict in verdicts(out))
    return read_table(out / "documents.parquet").to_pylist()


def test_menus_and_footers_go_from_every_shard(tmp_path: Path):
    repeated, shards = boilerplate_of(tmp_path, [pages(8), pages(8, 8)], 12)
    assert set(np.load(repeated.path / REPEATED).tolist()) == {hash_line(MENU), hash_line(FOOTER)}
    samples = read_json_lines(repeated.path / "figures" / "lines.jsonl")
    assert samples == [
        {"line": line, "documents_at_least": 16}
        for line in sorted((MENU, FOOTER), key=lambda line: hash_line(line))
    ]
    for shard in shards:
        for row in cleaned(tmp_path, repeated, shard):
            assert MENU not in row["text"]
            assert FOOTER not in row["text"]
            assert row["text"].count("The loaf of day") == 3


def test_a_copy_of_a_document_is_for_deduplicate_to_judge(tmp_path: Path):
    copies = {f"copy-{i}": f"{pages(1)['page-0']}{i}" for i in range(20)}
    repeated, (shard,) = boilerplate_of(tmp_path, [copies], 12)
    assert len(np.load(repeated.path / REPEATED)) > 2
    assert [row["text"] for row in cleaned(tmp_path, repeated, shard)] == list(copies.values())
    # Texts that are equal to the letter do not even count.
    equal, _ = boilerplate_of(tmp_path / "equal", [{f"copy-{i}": pages(1)["page-0"] for i in range(20)}], 12)
    assert len(np.load(equal.path / REPEATED)) == 0


def test_short_lines_stay(tmp_path: Path):
    texts = {name: text.replace("\n", "\n}\n") for name, text in pages(20).items()}
    repeated, (shard,) = boilerplate_of(tmp_path, [texts], 12)
    assert all("\n}\n" in row["text"] for row in cleaned(tmp_path, repeated, shard))


@given(
    st.lists(
        st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5).map(tuple), max_size=6),
        min_size=1,
        max_size=4,
    ),
    st.integers(2, 5),
)
def test_a_line_counts_once_a_document_whatever_the_shards(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[tuple[str, ...]]], min_documents: int
):
    folder = tmp_path_factory.mktemp("lines")
    named = [
        {
            str(i): "\n".join(f"the line {letter} of it" for letter in letters)
            for i, letters in enumerate(texts)
        }
        for texts in shards
    ]
    repeated, _ = boilerplate_of(folder, named, min_documents)
    counts = Counter(
        line for texts in named for text in set(texts.values()) for line in set(text.split("\n")) if line
    )
    expected = sorted(hash_line(line) for line, count in counts.items() if count >= min_documents)
    assert np.load(repeated.path / REPEATED).tolist() == expected


def test_lines_are_counted_only_where_a_recipe_asks_for_it():
    source = {"ingest": {"sources": [{"path": "text"}]}}
    names = [node.name for node in graph(Recipe.model_validate(source))]
    assert not {"count_lines", "find_repeated_lines"} & set(names)
    asked = Recipe.model_validate({**source, "clean": {"repeated_lines": {"min_documents": 9}}})
    nodes = {node.name: node for node in graph(asked)}
    assert nodes["clean"].inputs["repeated"] is nodes["find_repeated_lines"]
    assert nodes["find_repeated_lines"].config.min_documents == 9
