"""Recipes: what is wrong is one clear sentence, before anything starts."""

from pathlib import Path

import pytest
import yaml

from flows.recipe.fields import list_fields
from flows.recipe.read import load_recipe
from flows.recipe.recipe import Recipe
from model.errors import InputError
from tests.conftest import ROOT

GOOD = {"ingest": {"sources": [{"path": "text"}]}}


def load(tmp_path: Path, values: object, *assignments: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return load_recipe(path, list(assignments))


def test_the_demo_recipe_is_valid_and_small_recipes_have_defaults(tmp_path: Path):
    demo = load_recipe(ROOT / "deployments" / "recipes" / "demo.yaml")
    assert demo.name == "demo"
    assert len(demo.split.validation_ids) == 13
    assert load(tmp_path, GOOD).name == "recipe"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"trian_model": {}}, "unknown field trian_model: did you mean 'train_model'?"),
        ({"train_model": {"tokns": 5}}, "unknown field train_model.tokns: did you mean 'tokens'?"),
        ({"ingest": {"sources": [{"pth": "x"}]}}, "unknown field ingest.sources.0.pth: did you mean 'path'?"),
        ({"ingest": {}}, "the field ingest.sources is missing"),
        ({"ingest": {"sources": []}}, "ingest.sources is []"),
        ({"model": {"n_layers": 0}}, "model.n_layers is 0: input should be greater than or equal to 1"),
        ({"model": {"n_layers": "many"}}, "model.n_layers is 'many': input should be a valid integer"),
        (
            {"model": {"d_model": 100, "n_heads": 3}},
            "d_model (100) must be divisible by n_heads (3): take d_model 99",
        ),
        (
            {"model": {"norm": "batchnorm"}},
            "model.norm is 'batchnorm': input should be 'rmsnorm' or 'layernorm'",
        ),
        (
            {"train_model": {"tokens_per_batch": 1000}},
            "tokens_per_batch (1000) must be a multiple of model.context_length (256)",
        ),
        ({"train_model": {"tokens": 100}}, "tokens (100) is less than one step of tokens_per_batch (4096)"),
        ({"train_model": {"warmup_fraction": 0.5}}, "exceed 1 together"),
        ({"train_tokenizer": {"vocabulary_size": 100}}, "train_tokenizer.vocabulary_size is 100"),
        ({"split": {"validation_ids": ["other/x"]}}, "'other/x' begins with no source of ingest (text)"),
        (
            {"split": {"validation_source": "txt"}},
            "split.validation_source 'txt' is no source of ingest: did you mean 'text'?",
        ),
        ({"split": {"validation_fraction": 0.1, "validation_ids": ["text/a"]}}, "choose one"),
        ({"machine": {"ranks": 3}}, "cannot be shared by machine.ranks 3"),
        (
            {"machine": {"zero_stage": 0}, "train_model": {"dtype": "bfloat16"}},
            "set machine.zero_stage to auto or 1, or dtype to float32",
        ),
        (
            {"clean": {"gopher_quality": {"min_wrds": 5}}},
            "clean.gopher_quality.min_wrds: did you mean 'min_words'?",
        ),
        (
            {
                "ingest": {"sources": [{"path": "text", "profile": "books"}]},
                "clean": {"gopher_quality": {"min_words": 5}},
            },
            "clean.gopher_quality is for sources with profile web",
        ),
        ({"clean": {"repetition": "never"}}, "clean.repetition is 'never'"),
        (
            {"evaluate_model": {"tasks": "sciq"}},
            "evaluate_model.tasks is 'sciq': input should be a list, such as [a, b]",
        ),
        ("name: a\nname: b\n", "'name' is given twice at line 1"),
        ("[1, 2]", "is not a mapping"),
        ("a: [", "is not YAML"),
        ("ingest: {sources: [{path: a}]}\nname: a b\n", "name is 'a b'"),
    ],
)
def test_bad_recipes(tmp_path: Path, change, sentence: str):
    with pytest.raises(InputError) as caught:
        load(tmp_path, {**GOOD, **change} if isinstance(change, dict) else change)
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_recipe_that_is_not_there(tmp_path: Path):
    (tmp_path / "demo.yaml").write_text("")
    with pytest.raises(InputError, match=r"there is no recipe .*deom\.yaml: did you mean .*demo\.yaml\?"):
        load_recipe(tmp_path / "deom.yaml")


def test_set_overrides_a_field(tmp_path: Path):
    recipe = load(
        tmp_path,
        GOOD,
        "train_model.tokens=1_000_000",
        "model.tie_embeddings=true",
        "ingest.sources.0.name=other",
        "name=x",
    )
    assert recipe.train_model.tokens == 1_000_000
    assert recipe.model.tie_embeddings
    assert recipe.ingest.sources[0].name == "other"
    assert recipe.name == "x"


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("train_model.tokens", "is not of the form"),
        ("train_model.tokns=3", "did you mean 'tokens'?"),
        ("name.x=3", "name.x is not a field"),
        ("train_model.tokens=[", "the value is not YAML"),
    ],
)
def test_bad_assignments(tmp_path: Path, assignment: str, sentence: str):
    with pytest.raises(InputError) as caught:
        load(tmp_path, GOOD, assignment)
    assert sentence in str(caught.value)


def test_a_machine_file(tmp_path: Path):
    (tmp_path / "machine.yaml").write_text("ranks: 2\n")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(GOOD))
    assert load_recipe(tmp_path / "recipe.yaml", machine=tmp_path / "machine.yaml").machine.ranks == 2
    (tmp_path / "machine.yaml").write_text("rank: 2\n")
    with pytest.raises(InputError, match=r"machine\.yaml: unknown field machine\.rank: did you mean 'ranks'"):
        load_recipe(tmp_path / "recipe.yaml", machine=tmp_path / "machine.yaml")


def _fields(model) -> list:
    found = []
    for name, field in model.model_fields.items():
        found.append((f"{model.__name__}.{name}", field.description))
        kind = field.annotation
        if isinstance(kind, type) and hasattr(kind, "model_fields"):
            found += _fields(kind)
    return found


def test_every_field_has_a_description():
    missing = [name for name, description in _fields(Recipe) if not description]
    assert missing == []


def test_steps_of_cleaning_are_set_as_fields_spells_them(tmp_path: Path):
    names = {field.name for field in list_fields("clean")}
    assert {"clean.gopher_quality", "clean.gopher_quality.min_words", "clean.max_dropped"} <= names
    crawl = {**GOOD, "ingest": {"sources": [{"path": "a", "profile": "web"}]}}
    clean = load(tmp_path, crawl, "clean.gopher_quality.min_words=20", "clean.gopher_repetition=off").clean
    assert clean.gopher_quality.min_words == 20
    assert clean.gopher_repetition is None
    assert clean.repetition is not None
    # What is written for a child process or shown in a form reads back as it was.
    assert type(clean).model_validate_json(clean.model_dump_json()) == clean
