"""A classifier from examples: the same bytes each time, measured on what it did not see, and tied to its file in a recipe."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from model.errors import InputError
from tasks.tables import arrow_schema
from tasks.text.classifier_training import Classifier, train_classifier
from tasks.text.classifiers import file_digest
from tasks.text.clean import CleanConfig
from tasks.text.documents import DOCUMENTS_SCHEMA
from tasks.text.filters.quality_classifier import QualityClassifier
from tasks.text.judging import Documents


def good(n: int = 200) -> list[str]:
    return [f"On day {i} we went down to the river,\nand it was calm.\n" for i in range(n)]


def bad(n: int = 200) -> list[str]:
    return [f"BUY NOW item {i}: cheap watches, click here, free shipping" for i in range(n)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return train_classifier(good(), bad(), tmp_path_factory.mktemp("classifier") / "quality.bin")


def documents(*texts: str) -> Documents:
    rows = [dict.fromkeys(DOCUMENTS_SCHEMA, "") | {"text": text} for text in texts]
    return Documents(pa.RecordBatch.from_pylist(rows, arrow_schema(DOCUMENTS_SCHEMA)))


def test_it_is_measured_on_what_it_did_not_see(made: Classifier):
    assert made.trained["good"] + made.held_out["good"] == 200
    assert 20 <= made.held_out["bad"] <= 70
    half = next(at for at in made.at if at.threshold == 0.5)
    assert half.precision == half.recall == half.dropped == 1.0
    assert [at.recall for at in made.at] == sorted((at.recall for at in made.at), reverse=True)


def test_the_same_examples_in_any_order_give_the_same_bytes(made: Classifier, tmp_path: Path):
    again = train_classifier(reversed(good() + good(5)), reversed(bad()), tmp_path / "again.bin")
    assert again.digest == made.digest == file_digest(tmp_path / "again.bin")
    assert train_classifier(good(), bad(150), tmp_path / "other.bin").digest != made.digest


def test_a_text_that_is_good_and_bad_is_no_example(tmp_path: Path):
    assert train_classifier(good(), [*bad(), *good(3)], tmp_path / "x.bin").in_both == 3


def test_too_few_examples_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"different bad texts are .* give more examples"):
        train_classifier(good(), bad(30), tmp_path / "x.bin")
    assert not list(tmp_path.iterdir())


def test_what_it_does_not_take_for_good_is_dropped_with_value_and_limit(made: Classifier):
    step = QualityClassifier(path=str(made.path), min_probability=0.6)
    kept, dropped, nothing = step.judge(documents(good()[3] * 40, bad()[3], " "))
    assert kept is None
    assert dropped.field == "min_probability"
    assert dropped.value < 0.1
    assert dropped.limit == 0.6
    assert nothing.value < 0.6


def test_the_file_is_in_the_recipe_by_its_content(made: Classifier, tmp_path: Path):
    path = tmp_path / "mine.bin"
    shutil.copyfile(made.path, path)
    config = CleanConfig.model_validate({"quality_classifier": {"path": str(path)}})
    assert config.quality_classifier.digest == made.digest
    assert [name for name, _ in config.steps("web")].count("quality_classifier") == 1
    train_classifier(good(), bad(150), path)
    # What was read of it before says of which file it was, and what is read now is another.
    again = CleanConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    with pytest.raises(InputError, match="is not the file that the recipe was read with"):
        again.quality_classifier.judge(documents("x"))
    assert CleanConfig.model_validate({"quality_classifier": {"path": str(path)}}) != config


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"path": "nowhere.bin"}, "train-classifier GOOD BAD` writes one"),
        ({"path": ""}, "cannot be read"),
        ({}, "Field required"),
    ],
)
def test_what_is_no_classifier_is_said_before_anything_runs(fields: dict[str, Any], sentence: str):
    with pytest.raises(ValidationError, match=sentence):
        QualityClassifier(**fields)


def test_a_label_or_a_file_that_is_not_one_is_said(made: Classifier, tmp_path: Path):
    with pytest.raises(InputError, match=r"knows the labels .*good.* and no 'fine'"):
        QualityClassifier(path=str(made.path), label="fine").judge(documents("x"))
    (tmp_path / "text.bin").write_text("no model")
    with pytest.raises(InputError, match="is no classifier of fastText"):
        QualityClassifier(path=str(tmp_path / "text.bin")).judge(documents("x"))
