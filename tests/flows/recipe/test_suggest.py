"""What init suggests, for little and much text, and for few and many minutes."""

import gzip
import json
from pathlib import Path

import pytest
import yaml

from flows.recipe.recipe import Recipe
from flows.recipe.suggest import Suggestion, bytes_per_token, name_of, suggest
from flows.recipe.survey import Survey, survey
from model.config import flops_per_token
from model.errors import InputError


def seen(megabytes: float, documents: float, **fields) -> Survey:
    size = int(megabytes * 1e6)
    kind = {"files": {".txt": int(documents)}, "left_out": {}, "file_bytes": size, "largest_bytes": size}
    return Survey(
        "text", **{**kind, "documents": documents, "text_bytes": size, "is_english": True, **fields}
    )


def machine(flops_per_second: float):
    """A machine of this speed, on which all but training takes half a minute."""

    def foresee(recipe: Recipe) -> tuple[float, float]:
        train = recipe.train_model
        flops = flops_per_token(recipe.model, recipe.train_tokenizer.vocabulary_size)
        step = train.tokens_per_batch * flops / flops_per_second
        return 30 + train.n_steps * step, step

    return foresee


@pytest.mark.parametrize("minutes", [2, 10, 60, 600])
@pytest.mark.parametrize("megabytes", [0.1, 1, 12, 150, 1_000])
@pytest.mark.parametrize("speed", [20e9, 80e9, 50e12])
def test_a_suggestion_is_a_recipe_within_time_and_text(megabytes: float, minutes: float, speed: float):
    takes = machine(speed)
    suggestion = suggest(seen(megabytes, max(20, megabytes * 60)), minutes, takes)
    recipe = suggestion.recipe
    total, _step = takes(recipe)
    vocabulary = recipe.train_tokenizer.vocabulary_size
    tokens = megabytes * 1e6 / bytes_per_token(vocabulary)
    # Within the time, but for the few steps without which nothing is learnt.
    assert total <= 60 * minutes or recipe.train_model.n_steps <= 25
    assert recipe.train_model.tokens <= 6 * tokens or recipe.train_model.n_steps <= 25
    assert recipe.train_model.n_steps >= 20
    # What is written reads back as the same recipe.
    text = suggestion.as_yaml("By a test.")
    assert Recipe.model_validate(yaml.safe_load(text)) == recipe
    assert text.count("#") >= 4


def test_more_time_and_text_make_a_larger_model():
    shapes = [
        suggest(seen(megabytes, 1_000), minutes, machine(80e9)).recipe.model.d_model
        for megabytes, minutes in ((0.1, 2), (1, 10), (50, 60), (1_000, 600))
    ]
    assert shapes == sorted(shapes)
    assert shapes[0] < shapes[-1]


def test_few_documents_are_cut_and_some_are_held_out_of_any_number():
    one = suggest(seen(0.1, 1, files={".txt": 1}), 5, machine(80e9)).recipe
    assert one.ingest.sources[0].cut == "paragraphs"
    assert one.split.validation_fraction * 100_000 / one.ingest.sources[0].cut_bytes >= 8
    many = suggest(seen(500, 100_000), 5, machine(80e9)).recipe
    assert many.ingest.sources[0].cut == "auto"
    # Of much text and few minutes a share is taken, and what is held out of it is little.
    assert many.ingest.sources[0].share < 0.2
    assert many.split.validation_fraction * many.ingest.sources[0].share * 500e6 <= 3e6


def test_other_languages_get_no_english_benchmarks():
    assert suggest(seen(1, 60, is_english=False), 5, machine(80e9)).recipe.evaluate_model.tasks == ()


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/my text", "my-text"), ("b.txt", "b"), ("日本", "mine"), ("x/*.md", "mine"), ("c.jsonl.gz", "c")],
)
def test_names(path: str, name: str):
    assert name_of(path) == name


@pytest.mark.parametrize("name", ["2024", "no", "null", "true", "1e5", "2020-01-01", 'a "quoted" ünicode'])
def test_what_init_writes_can_be_read_whatever_a_folder_is_called(name: str):
    written = Suggestion({"name": name_of(name), "ingest": {"sources": [{"path": name}]}}, {}).as_yaml(
        "title"
    )
    read = yaml.safe_load(written)
    assert read["ingest"]["sources"][0]["path"] == name
    assert isinstance(read["name"], str)


def test_the_size_of_packed_text_is_that_of_the_text(tmp_path: Path, speeches: list[Path]):
    text = "".join(path.read_text() for path in speeches)[:8_000_000]
    lines = "".join(
        json.dumps({"text": text[i : i + 5000], "more": "x" * 3000}) + "\n" for i in range(0, len(text), 5000)
    )
    (tmp_path / "plain.jsonl").write_text(lines)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(lines.encode(), 1))
    for name in ("plain.jsonl", "packed.jsonl.gz"):
        assert survey(str(tmp_path / name)).text_bytes == pytest.approx(len(text.encode()), rel=0.25)


def test_too_little_text_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("twelve bytes")
    with pytest.raises(InputError, match="too little to train on"):
        survey(str(tmp_path))
