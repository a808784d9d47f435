"""The tokenizer and the token shards."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenizer import END_OF_TEXT, end_of_text_id, load_tokenizer
from model.tokens import open_tokens
from tasks.engine.stage import Artifact, Shard
from tasks.tokens.tokenize import tokenize
from tasks.tokens.train_tokenizer import TrainTokenizerConfig, train_tokenizer
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
    assert 5_000 < metrics["training_bytes"] < 80_000


def test_a_small_text_gives_a_small_vocabulary(tmp_path: Path):
    documents, selection = write(tmp_path, ["ab ab ab"])
    metrics = train_tokenizer.fn(
        TrainTokenizerConfig(vocabulary_size=5000),
        documents=documents,
        selection=selection,
        out=tmp_path / "out",
    )
    assert 257 < metrics["vocabulary_size"] < 270
