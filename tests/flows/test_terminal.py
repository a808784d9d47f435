"""What the terminal says of a stage and of a training."""

from typing import Any

import pytest
from rich.text import Text

from flows.views.rows import fate_of
from flows.views.terminal import training_lines_of

FIGURES: dict[str, Any] = {
    "parameters": 1_000_000,
    "tokens": 100_000,
    "epochs": 4.0,
    "steps": 100,
    "step_seconds": 10.0,
    "validation_bits_per_byte_before": None,
    "validation_bits_per_byte": 1.5,
    "best_validation_bits_per_byte": 1.5,
    "kept_step": 100,
}


def told(**figures: Any) -> str:
    return "\n".join(Text.from_markup(line).plain for line in training_lines_of({**FIGURES, **figures}))


def test_a_training_that_went_well_is_one_line():
    assert told() == "1.00 M parameters, 100,000 tokens (4 epochs) in 100 steps, 10 s"


def test_what_of_a_training_a_person_should_know():
    assert "only 3 steps" in told(steps=3)
    turned = told(best_validation_bits_per_byte=1.2, kept_step=50)
    assert "turned at step 50 (epoch 2.0): 1.200 bits per byte there, 1.500 at the end" in turned
    assert "next to nothing: for more, raise learning_rate" in told(validation_bits_per_byte_before=1.501)
    assert "next to nothing" not in told(validation_bits_per_byte_before=2.0)


@pytest.mark.parametrize(
    ("stage", "metrics", "sentence"),
    [
        ("deduplicate", {"documents": 10, "removed": 0}, "10 documents kept"),
        (
            "decontaminate",
            {"documents": 10, "contaminated": 2, "by_task": {"sciq": 2}},
            "8 documents kept, 2 dropped (contains an item of sciq)",
        ),
        (
            "clean",
            {"kept": 5, "dropped": {"no text": 1, "encoded data": 4}, "dropped_by_field": {"clean.empty": 1}},
            "5 documents kept, 5 dropped (most: encoded data (4))",
        ),
    ],
)
def test_what_a_stage_left(stage: str, metrics: dict, sentence: str):
    fate = fate_of(stage, metrics)
    assert fate
    assert fate.sentence == sentence
    assert fate_of("train_model", {}) is None
