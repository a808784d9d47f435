"""ablate: what is left out, which nodes are shared, and what a difference is worth."""

from typing import Any

import numpy as np
import pytest

from flows import ablate
from flows.pretrain import nodes_of, prepare_text
from flows.recipe.recipe import Recipe
from flows.runs.worth import difference_of, judges
from model.errors import InputError


def recipe(**sections: Any) -> Recipe:
    sources = [{"name": "books", "path": "books"}, {"name": "web", "path": "web"}]
    return Recipe.model_validate({"ingest": {"sources": sources}, **sections})


def by_name(nodes: list[Any]) -> dict[str, Any]:
    named = {node.name: node for node in nodes}
    assert len(named) == len(nodes), "two nodes have one name"
    return named


def test_what_is_equal_with_and_without_is_one_node():
    nodes = by_name(ablate.graph(recipe(), "clean.rubbish", 2))
    assert "ingest_without" not in nodes
    assert nodes["clean_without"].inputs["documents"] is nodes["ingest"]
    assert nodes["clean_without"].config.rubbish is None
    assert nodes["tokenize_without"].inputs["tokenizer"] is nodes["train_tokenizer"]
    # What is held out of the text stays held out without it.
    assert nodes["deduplicate_without"].inputs["former"] is nodes["split"]


def test_all_models_take_equal_steps_from_other_seeds():
    nodes = by_name(ablate.graph(recipe(), "source:web", 3))
    trainings = {name: node for name, node in nodes.items() if node.role == "train"}
    assert len(trainings) == 6
    assert {node.config.train.n_steps for node in trainings.values()} == {recipe().train_model.n_steps}
    assert [nodes[f"train_{i}"].config.train.seed for i in range(3)] == [0, 1, 2]
    assert nodes["train_1"].config == nodes["train_1_without"].config
    assert nodes["train_1"].inputs["tokens"] is not nodes["train_1_without"].inputs["tokens"]


def test_the_first_model_with_it_is_that_of_the_run_itself():
    from flows import pretrain

    own = by_name(pretrain.graph(recipe()))["train_model"]
    assert by_name(ablate.graph(recipe(), "source:web", 2))["train_0"].config == own.config


def test_without_a_mixture_the_text_is_the_same():
    mixed = recipe(mixture={"weights": {"books": 2, "web": 1}})
    nodes = by_name(ablate.graph(mixed, "mixture", 2))
    assert len(nodes) == len(nodes_of(prepare_text(mixed))) + 2 * 2 * 3
    assert nodes["train_0"].config.mixture.weights
    assert not nodes["train_0_without"].config.mixture.weights


def test_a_source_goes_with_its_weight_and_its_held_out_documents():
    mixed = recipe(
        mixture={
            "weights": {"books": 2, "web": 1},
            "phases": [{"from_fraction": 0.8, "weights": {"web": 1}}],
        },
        split={"validation_ids": ["books/a.txt", "web/b.txt"]},
    )
    left = ablate.recipe_without(mixed, "source:web")
    assert [source.name for source in left.sources] == ["books"]
    assert left.mixture.weights == {"books": 2}
    assert not left.mixture.phases
    assert left.split.validation_ids == ("books/a.txt",)


@pytest.mark.parametrize(
    ("what", "sections", "sentence"),
    [
        ("clean.rubish", {}, "did you mean 'rubbish'"),
        ("clean.language", {}, "is none of the steps"),
        ("clean.filters.mine", {}, "is none of the steps of clean.filters"),
        ("source:wob", {}, "did you mean 'web'"),
        ("source:web", {"split": {"validation_source": "web"}}, "it is held out"),
        ("source:web", {"split": {"validation_ids": ["web/a.txt"]}}, "all of split.validation_ids"),
        ("mixture", {}, "nothing to leave out"),
        ("tokenizer", {}, "give clean.STEP, clean.filters.NAME, source:NAME, or mixture"),
    ],
)
def test_what_cannot_be_left_out_is_said(what: str, sections: dict[str, Any], sentence: str):
    with pytest.raises(InputError, match=sentence):
        ablate.recipe_without(recipe(**sections), what)


def test_one_model_tells_no_noise():
    with pytest.raises(InputError, match="take at least 2"):
        ablate.graph(recipe(), "source:web", 1)


def test_what_is_alike_to_text_that_the_other_side_trains_on_judges_nothing():
    groups = {"a/held": 1, "b/copy": 1, "a/own": 2, "b/own": 3, "a/same": 4}
    judging = judges(["a/held", "a/own", "a/same"], {"b/copy", "b/own", "a/same", "c/new"}, groups)
    assert judging == ["a/own"]


def test_the_interval_covers_no_difference_as_often_as_it_says():
    rng, outside = np.random.default_rng(0), 0
    n_bytes = rng.integers(500, 2_000, 30).astype(float)
    for _ in range(400):
        ours, theirs = (rng.normal(1.0, 0.01, (3, 1)) * n_bytes + rng.normal(0, 3, 30) for _ in range(2))
        one = difference_of(ours, theirs, n_bytes)
        outside += abs(one.worth) > one.noise
    assert outside <= 0.08 * 400


def test_a_difference_is_in_bits_per_byte_and_has_its_sign():
    n_bytes = np.array([100.0, 300.0])
    ours = np.log(2) * np.array([[100.0, 300.0], [101.0, 303.0]])
    one = difference_of(ours, 1.1 * ours, n_bytes)
    assert one.having == pytest.approx(1.005)
    assert one.worth == pytest.approx(0.1005)
    assert one.by_documents == pytest.approx(0, abs=1e-9)
    assert difference_of(1.1 * ours, ours, n_bytes).worth == pytest.approx(-0.1005)
