"""The mixture: shares by weight, phases, and a cap on how often a source is read."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from flows.recipe.recipe import Recipe
from flows.runs.mixing import mix_sources, told
from model.errors import InputError
from model.objectives.mixed_text import MixedTextObjective, SharesFrom, tokens_of_source
from model.tokens import open_tokens, write_tokens
from tasks.training.mixture import MixtureConfig, epochs_by_source, windows_by_source

WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 10), min_size=1, max_size=4)


@given(WEIGHTS, st.lists(st.integers(1, 500), min_size=4, max_size=4), st.integers(1, 60), st.floats(0.5, 9))
def test_no_source_is_read_more_often_than_it_may(weights, sizes, n_steps: int, most: float):
    config = MixtureConfig(weights=weights, max_epochs=most)
    there = dict(zip("abcd", map(float, sizes), strict=True))
    wanted = n_steps * 4
    possible = sum(there[name] for name in weights) * most
    # Less than a window may lack, but for what rounding makes of one.
    assume(abs(possible - (wanted - 1)) > 1e-6)
    if possible < wanted - 1:
        with pytest.raises(InputError, match=r"leaves [\d,]+ windows of these .*lower train_model\.tokens"):
            windows_by_source(config, there, n_steps, 4)
        return
    phases = windows_by_source(config, there, n_steps, 4)
    read = epochs_by_source(phases, there, wanted)
    assert all(own["epochs"] <= most + 1 / there[name] for name, own in read.items())
    assert sum(own["share"] for own in read.values()) == pytest.approx(1, abs=0.01)
    # Of two that are below the cap each has its weight.
    free = [name for name in weights if read[name]["epochs"] < 0.99 * most]
    for one in free:
        for other in free:
            ratio = phases[0].shares[one] / phases[0].shares[other]
            assert ratio == pytest.approx(weights[one] / weights[other])


@pytest.mark.parametrize("begin", [0.01, 0.99])
def test_a_phase_of_no_whole_step_reads_nothing(begin: float):
    phases = ({"from_fraction": begin, "weights": {"b": 1}},)
    config = MixtureConfig(weights={"a": 1}, phases=phases, max_epochs=4)
    sizes = {"a": 100.0, "b": 100.0}
    read = epochs_by_source(windows_by_source(config, sizes, 20, 4), sizes, 80)
    assert [own["windows"] for own in read.values()] == ([80, 0] if begin > 0.5 else [0, 80])


def test_phases_begin_at_their_share_of_the_steps():
    config = MixtureConfig(
        weights={"web": 3, "books": 1}, phases=({"from_fraction": 0.8, "weights": {"books": 1}},)
    )
    sizes = {"web": 100.0, "books": 10.0}
    phases = windows_by_source(config, sizes, 10, 8)
    assert [(phase.first_window, phase.shares) for phase in phases] == [
        (0, {"books": 1.0, "web": 3.0}),
        (64, {"books": 1.0}),
    ]
    read = epochs_by_source(phases, sizes, 80)
    assert read["books"] == {"windows": 32, "share": 0.4, "epochs": 3.2}
    assert read["web"] == {"windows": 48, "share": 0.6, "epochs": 0.48}
    # What a source still has when a phase begins, and what that phase reads, belong together.
    capped = config.model_copy(update={"max_epochs": 3.0})
    sentence = (
        r"phases\.0\.weights: mixture\.max_epochs \(3\) leaves 14 windows of these .* 16 are read there: "
    )
    with pytest.raises(InputError, match=sentence):
        windows_by_source(capped, sizes, 10, 8)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"weights": {"a": -1.0}}, "negative"),
        ({"weights": {"a": 0.0}}, "nothing would be read"),
        ({"max_epochs": 4}, "give each source a weight"),
        (
            {"weights": {"a": 1}, "phases": [{"from_fraction": f, "weights": {"a": 1}} for f in (0.5, 0.2)]},
            "must rise",
        ),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(values: dict, told: str):
    with pytest.raises(ValidationError, match=told):
        MixtureConfig.model_validate(values)


def recipe(folder: Path, **mixture) -> Recipe:
    sources = []
    for name, n_bytes in (("web", 40_000), ("books", 4_000)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "a.txt").write_text("word " * (n_bytes // 5))
        sources.append({"name": name, "path": str(folder / name)})
    return Recipe.model_validate(
        {
            "ingest": {"sources": sources},
            "model": {"context_length": 64},
            "train_model": {"tokens": 20_480, "tokens_per_batch": 1_024},
            "mixture": mixture,
        }
    )


def test_weights_of_nobody_are_refused(tmp_path: Path):
    with pytest.raises(ValidationError, match="did you mean 'books'"):
        recipe(tmp_path, weights={"book": 1})
    with pytest.raises(ValidationError, match=r"retrain\.start"):
        Recipe.model_validate(
            {
                **recipe(tmp_path, weights={"web": 1}).model_dump(exclude={"machine"}),
                "retrain": {"start": "champion"},
            }
        )


def test_the_plan_says_what_each_source_gives(tmp_path: Path):
    plain = {one.name: one for one in mix_sources(recipe(tmp_path), [])}
    assert plain["web"].share == pytest.approx(10 / 11, abs=0.01)
    assert plain["web"].epochs == pytest.approx(plain["books"].epochs)
    mixed = recipe(tmp_path, weights={"web": 1, "books": 1})
    shares, warnings = told(mixed, [])
    assert {one.name: one.share for one in shares} == {"web": 0.5, "books": 0.5}
    books = next(one for one in shares if one.name == "books")
    assert books.epochs > 6
    assert f"the source books would be read {books.epochs:.1f} times" in warnings[0]
    capped = recipe(tmp_path, weights={"web": 1, "books": 1}, max_epochs=3)
    assert {one.name: one.epochs <= 3.01 for one in told(capped, [])[0]} == {"web": True, "books": True}
    assert "lower train_model.tokens" in told(recipe(tmp_path, weights={"books": 1}, max_epochs=1), [])[1][0]


def test_each_source_is_a_stream_of_its_own(tmp_path: Path):
    documents = [np.full(20, 10 + i) for i in range(6)]
    sources = ["a", "b", "b", "a", "a", "b"]
    paths = [tmp_path / f"{i}.arrow" for i in range(2)]
    for i, path in enumerate(paths):
        own = slice(3 * i, 3 * i + 3)
        names = [f"{source}/{j}" for j, source in enumerate(sources[own])]
        write_tokens(
            path,
            documents[own],
            names,
            sources[own],
            [1] * 3,
            tokenizer_sha256="x",
            vocabulary_size=100,
            end_of_text_id=0,
        )
    shards = [open_tokens(path) for path in paths]
    of_a = np.concatenate(tokens_of_source(shards, "a"))
    assert set(of_a.tolist()) == {0, 10, 13, 14}
    assert len(of_a) == 63
    assert tokens_of_source(shards, "nobody") == []
    phases = (
        SharesFrom(first_window=0, shares={"a": 1.0}),
        SharesFrom(first_window=8, shares={"a": 1.0, "b": 3.0}),
    )
    rows = MixedTextObjective(phases=phases).open_rows(shards, 8)
    first, second = (rows.batch(step, 8, 3, 0, 8)["tokens"] for step in (0, 1))
    assert set(first.ravel().tolist()) <= {0, 10, 13, 14}
    from_b = sum(bool(set(row) & {11, 12, 15}) for row in second.tolist())
    assert from_b == 6
