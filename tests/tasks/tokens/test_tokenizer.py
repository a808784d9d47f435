"""The tokenizer and the token shards."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenizer import END_OF_TEXT, end_of_text_id, load_tokenizer
from model.tokens import open_tokens
from tasks.engine.stage import Artifact, Shard
from tasks.tokens.tokenize import tokenize
from tasks.tokens.train_tokenizer import (
    SPLIT_PATTERN,
    Sample,
    TrainTokenizerConfig,
    _learnable,
    train_tokenizer,
)
from tests.tasks.conftest import write


@given(
    st.text() | st.lists(st.sampled_from([END_OF_TEXT, "<|", "a", " ", "\n", "é", "𝄞", "1234"])).map("".join)
)
@settings(deadline=None)
def test_every_text_survives_and_none_becomes_a_special_token(tokenizer: Artifact, text: str):
    loaded = load_tokenizer(tokenizer.path)
    ids = loaded.encode(text, add_special_tokens=False).ids
    assert end_of_text_id(loaded) not in ids
    assert loaded.decode(ids, skip_special_tokens=False) == text


@given(st.lists(st.text(max_size=60) | st.just(f"a{END_OF_TEXT}b"), min_size=1, max_size=5))
@settings(deadline=None)
def test_token_shards_hold_what_tokenizers_gives(tmp_path_factory, tokenizer: Artifact, texts: list[str]):
    import json

    folder = tmp_path_factory.mktemp("shard")
    sides = ["train" if i % 2 == 0 else "validation" for i in range(len(texts))]
    documents, selection = write(folder, texts, sides)
    tokenize.fn(
        documents=Shard(documents.shards[0]),
        selection=Shard(selection.shards[0]),
        tokenizer=tokenizer,
        out=folder / "out",
    )
    loaded = load_tokenizer(tokenizer.path)
    token_bytes = np.array(json.loads((tokenizer.path / "token_bytes.json").read_text()))
    for side in ("train", "validation"):
        tokens = open_tokens(folder / "out" / f"{side}.arrow")
        wanted = [text for text, own in zip(texts, sides, strict=True) if own == side]
        expected = [i for text in wanted for i in (0, *loaded.encode(text, add_special_tokens=False).ids)]
        assert tokens.ids.tolist() == expected
        assert (
            token_bytes[tokens.ids].sum()
            == sum(len(text.encode()) for text in wanted)
            == tokens.header.n_bytes
        )


def test_training_is_deterministic_and_bounded(tmp_path: Path, speeches: list[Path]):
    documents, selection = write(tmp_path, [path.read_text()[:5_000] for path in speeches[:20]])
    for name, sample in (("a", 10**9), ("b", 10**9), ("c", 30_000)):
        config = TrainTokenizerConfig(vocabulary_size=400, sample_bytes=sample)
        metrics = train_tokenizer.fn(config, documents=documents, selection=selection, out=tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (
        tmp_path / "b" / "tokenizer.json"
    ).read_bytes()
    assert 20_000 < metrics["training_bytes"] <= 30_000


def shards_of(folder: Path, shards: list[list[str]]) -> tuple[Artifact, Artifact]:
    """Documents and selection of several shards."""
    written = [write(folder / str(i), texts) for i, texts in enumerate(shards)]
    documents, selections = zip(*written, strict=True)
    return tuple(Artifact(folder, tuple(one.shards[0] for one in each)) for each in (documents, selections))


TEXTS = st.lists(st.text("ab é日\n", max_size=300), min_size=1, max_size=8)


@given(st.lists(TEXTS, min_size=1, max_size=3), st.integers(1, 2_000), st.randoms())
@settings(deadline=None)
def test_a_sample_is_bounded_and_does_not_depend_on_shards_or_order(
    tmp_path_factory, shards: list[list[str]], most: int, random
):
    folder = tmp_path_factory.mktemp("sample")
    sample = Sample(*shards_of(folder / "one", shards), "train", most)
    taken = list(sample)
    texts = [text for shard in shards for text in shard]
    total = sum(len(text.encode()) for text in texts)
    assert sample.n_bytes == sum(len(piece.encode()) for piece in taken) <= most
    assert all(any(piece in text for text in texts) for piece in taken)
    if total <= most:
        assert taken == texts
    # Equal texts have equal draws, and which of them is taken is a matter of their order.
    other = list(dict.fromkeys(texts))
    if len(other) == len(texts):
        random.shuffle(other)
        again = Sample(*shards_of(folder / "other", [other]), "train", most)
        assert sorted(again) == sorted(taken)


def test_a_sample_is_near_its_size_and_opens_only_what_it_takes(tmp_path: Path, speeches: list[Path]):
    text = "".join(path.read_text() for path in speeches)
    shards = [[text[2_000 * i + 500 * j :][:500] for j in range(4)] for i in range(100)]
    documents, selection = shards_of(tmp_path, shards)
    taken = sum(len(piece.encode()) for piece in Sample(documents, selection, "train", 100_000))
    assert 0.9 * 100_000 < taken <= 100_000
    few = list(Sample(documents, selection, "train", 5_000))
    for folder, texts in zip(documents.shards, shards, strict=True):
        if not any(piece in text for text in texts for piece in few):
            (folder / "documents.parquet").unlink()
    assert sum((folder / "documents.parquet").exists() for folder in documents.shards) < 75
    assert list(Sample(documents, selection, "train", 5_000)) == few


@pytest.mark.parametrize("space", [" ", "\n", "\t"])
def test_of_one_large_document_pieces_are_taken(tmp_path: Path, speeches: list[Path], space: str):
    text = space.join("".join(path.read_text() for path in speeches).split())[:1_000_000]
    pieces = list(Sample(*write(tmp_path, [text]), "train", 100_000))
    assert 0.8 * 100_000 < sum(len(piece.encode()) for piece in pieces) <= 100_000
    assert len(pieces) == 100
    assert text.index(pieces[50]) > 250_000
    words = set(text.split())
    assert all(word in words for piece in pieces for word in piece.split())


def test_of_a_large_document_no_more_than_its_text_is_held(tmp_path: Path):
    text = "abcdefg " * 1_000_000
    sample = iter(Sample(*write(tmp_path, [text]), "train", 1_000_000))
    tracemalloc.start()
    try:
        assert sum(len(piece) for piece in sample) > 900_000
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text)  # of a copy for each of a hundred pieces
    finally:
        tracemalloc.stop()


def test_a_small_text_gives_a_small_vocabulary(tmp_path: Path):
    documents, selection = write(tmp_path, ["ab ab ab"])
    metrics = train_tokenizer.fn(
        TrainTokenizerConfig(vocabulary_size=5000),
        documents=documents,
        selection=selection,
        out=tmp_path / "out",
    )
    assert 257 < metrics["vocabulary_size"] < 270


@pytest.mark.parametrize("run", ["a", "_", "-", "_-", "=_", "é", " ", "\n", "_a"])
def test_nothing_that_a_vocabulary_is_learnt_from_is_one_long_piece(run: str):
    """Time to learn grows with the square of the longest."""
    parts = _learnable(f"before {run * 40_000} after")
    assert max(len(piece) for part in parts for piece in regex.findall(SPLIT_PATTERN, part)) < 1_010
