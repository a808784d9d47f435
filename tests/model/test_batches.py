"""Batches: a permutation of the windows, a pure function of seed and step, the same on any number of ranks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model.batches import Windows, permute
from model.mixture import Mixture, Phase
from model.tokens import open_tokens, write_tokens


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 50))
def test_permute_is_a_permutation(n, seed, epoch):
    image = permute(np.arange(n, dtype=np.uint64), n, seed, epoch)
    assert np.array_equal(np.sort(image), np.arange(n))
    position = n // 2
    assert permute(np.array([position], np.uint64), n, seed, epoch)[0] == image[position]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        permute(np.arange(100, dtype=np.uint64), 100, seed, epoch).tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(order) for order in orders}) == 3


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    """Three shards, one of them empty, of 500 tokens in all."""
    shards = []
    for i, size in enumerate((300, 0, 198)):
        documents = [np.arange(1000 * i, 1000 * i + size)] if size else []
        path = tmp_path / f"{i}.arrow"
        names = ["x"] * len(documents)
        write_tokens(
            path,
            documents,
            names,
            names,
            [1] * len(documents),
            tokenizer_sha256="t",
            vocabulary_size=5000,
            end_of_text_id=4999,
        )
        shards.append(open_tokens(path, "t"))
    return Windows([shard.ids for shard in shards], 16)


def test_windows_cover_the_stream_and_overlap_by_one(windows: Windows):
    assert windows.n_tokens == 500
    assert len(windows) == (500 - 1) // 16
    rows = windows.read(range(0, 16 * len(windows), 16))
    assert rows.shape == (31, 17)
    assert np.array_equal(rows[1:, 0], rows[:-1, -1])
    stream = np.concatenate([rows[0, :1], rows[:, 1:].ravel()])
    expected = np.concatenate(([4999], np.arange(300), [4999], np.arange(2000, 2198)))
    assert np.array_equal(stream, expected[: len(stream)])


@given(step=st.integers(0, 40), ranks=st.sampled_from([1, 2, 4, 8]))
def test_ranks_share_one_batch(tmp_path_factory, step, ranks):
    folder = tmp_path_factory.getbasetemp() / "ranks"
    path = folder / "0.arrow"
    if not path.exists():
        folder.mkdir()
        write_tokens(
            path,
            [np.arange(400)],
            ["x"],
            ["x"],
            [1],
            tokenizer_sha256="t",
            vocabulary_size=500,
            end_of_text_id=499,
        )
    windows = Windows([open_tokens(path).ids], 8)
    whole = windows.batch(step, 8, 5, 0, 8)
    parts = [windows.batch(step, 8, 5, rank * 8 // ranks, 8 // ranks) for rank in range(ranks)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_each_epoch_reads_the_stream_once_from_a_place_of_its_own(windows: Windows):
    first = []
    for epoch in range(4):
        steps = range(epoch * len(windows), (epoch + 1) * len(windows))
        rows = sorted(windows.batch(step, 1, 3, 0, 1)[0].tolist() for step in steps)
        assert len({tuple(row) for row in rows}) == len(windows)
        # All but what a whole number of windows leaves over is a target once.
        assert sum(len(row) - 1 for row in rows) == 16 * len(windows)
        first.append({row[0] for row in rows})
    assert first[0] == set(windows.read(range(0, 16 * len(windows), 16))[:, 0].tolist())
    assert len({frozenset(places) for places in first}) == 4


@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 2**32), st.integers(0, 500))
def test_every_window_is_a_piece_of_the_stream_and_its_beginning_follows_its_end(n, length, seed, sample):
    stream = np.arange(n + length)
    windows = Windows([stream[: n // 2], stream[n // 2 :]], length)
    (row,) = windows.draw(np.array([sample], np.uint64), seed)
    assert np.array_equal(np.diff(row) % len(stream), np.ones(length))


@given(share=st.floats(0, 0.99), count=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_a_mixture_keeps_its_proportion_on_any_number_of_ranks(share: float, count: int, seed: int):
    first, second = Windows([np.arange(200)], 8), Windows([np.arange(1000, 1100)], 8)
    mixture = Mixture([second, first], [Phase(0, (share, 1 - share))])
    whole = mixture.batch(3, 2 * count, seed, 0, 2 * count)
    halves = [mixture.batch(3, 2 * count, seed, rank * count, count) for rank in range(2)]
    assert np.array_equal(whole, np.concatenate(halves))
    n_second = int((whole[:, 0] >= 1000).sum())
    assert abs(n_second - share * 2 * count) <= 1


SHARES = st.lists(st.floats(0, 10), min_size=2, max_size=5).filter(lambda shares: sum(shares) > 0.1)


@example([1.1125369292536007e-308, 0.0, 0.0, 1.0], [1.0, 2.2250738585e-313], 0, 1, 0)
@given(SHARES, SHARES, st.integers(0, 60), st.integers(1, 12), st.integers(0, 2**32))
def test_a_mixture_of_many_phase_by_phase(before, after, boundary: int, per_step: int, seed: int):
    """Any rank sees the same windows; each stream is read in its own order, goes on where it was, and keeps its share."""
    after = [*after, *before][: len(before)]
    streams = [Windows([np.arange(1000 * i, 1000 * i + 41)], 4) for i in range(len(before))]
    mixture = Mixture(streams, [Phase(0, tuple(before)), Phase(boundary * per_step, tuple(after))])
    n_steps = 2 * boundary + 3
    steps = [mixture.batch(step, per_step, seed, 0, per_step) for step in range(n_steps)]
    parts = [
        np.concatenate([mixture.batch(step, per_step, seed, first, 1) for first in range(per_step)])
        for step in range(n_steps)
    ]
    assert all(np.array_equal(whole, split) for whole, split in zip(steps, parts, strict=True))
    of = np.concatenate(steps)[:, 0] // 1000
    for number, stream in enumerate(streams):
        read = np.concatenate(steps)[of == number]
        assert np.array_equal(read, stream.draw(np.arange(len(read), dtype=np.uint64), seed + number))
    for part, shares in ((of[: boundary * per_step], before), (of[boundary * per_step :], after)):
        counts = np.bincount(part, minlength=len(streams))
        assert counts.tolist() == Mixture.counts(len(part), shares).tolist()
        assert np.all(np.abs(counts - len(part) * np.array(shares) / sum(shares)) <= len(streams))
