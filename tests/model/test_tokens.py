"""Token files: what is written is read, and nothing else passes."""

import errno
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokens import TokensError, open_tokens, token_dtype, write_tokens


def write(path: Path, documents: list[list[int]], vocabulary_size: int = 300) -> None:
    names = [str(i) for i in range(len(documents))]
    write_tokens(
        path,
        [np.array(d, np.uint32) for d in documents],
        names,
        names,
        [len(d) for d in documents],
        tokenizer_sha256="abc",
        vocabulary_size=vocabulary_size,
        end_of_text_id=0,
    )


@given(st.lists(st.lists(st.integers(1, 299), max_size=20), max_size=8), st.sampled_from([300, 70_000]))
def test_round_trip(tmp_path_factory, documents, vocabulary_size):
    path = tmp_path_factory.getbasetemp() / "round.arrow"
    write(path, documents, vocabulary_size)
    tokens = open_tokens(path, "abc")
    assert tokens.ids.dtype == token_dtype(vocabulary_size)
    ends = tokens.documents.column("end").to_pylist()
    found = [tokens.ids[start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)]
    assert found == [[0, *document] for document in documents]
    assert tokens.header.n_bytes == sum(map(len, documents))


def test_a_flipped_bit_and_another_tokenizer_are_refused(tmp_path: Path):
    path = tmp_path / "a.arrow"
    write(path, [list(range(1, 200))])
    with pytest.raises(TokensError, match="do not belong together"):
        open_tokens(path, "def")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(TokensError):
        open_tokens(path, "abc")
    path.write_bytes(data[:100])
    with pytest.raises(TokensError, match="not a token file"):
        open_tokens(path)


def test_a_file_that_cannot_be_opened_now_is_not_called_damaged(tmp_path: Path):
    path = tmp_path / "a.arrow"
    write(path, [list(range(1, 200))])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as raised:
            open_tokens(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE


def test_a_file_with_a_flipped_bit_is_refused_or_tells_the_same(tmp_path: Path):
    """In whatever byte: of Arrow's own frame some are never looked at."""
    path = tmp_path / "a.arrow"
    write(path, [list(range(1, 20))])
    whole, data = open_tokens(path), path.read_bytes()
    refused = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        try:
            found = open_tokens(path)
        except TokensError:
            refused += 1
            continue
        assert found.ids.tolist() == whole.ids.tolist()
        assert found.ids.dtype == whole.ids.dtype
    assert refused > len(data) / 4
