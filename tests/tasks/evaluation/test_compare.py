"""When a challenger is better, and what becomes of the champion."""

import numpy as np
import pytest

from flows.runs.champions import promote_model, read_champions, refuse_model, roll_back
from flows.views.rows import comparison_rows
from model.errors import InputError, StageFailed
from tasks.engine.store import Store
from tasks.evaluation.compare_models import compare_held_out, verdict
from tasks.evaluation.intervals import compare_items


def rows(champion: float, challenger: float, n: int = 40, seed: int = 0) -> np.ndarray:
    """Documents of 1,000 bytes, with so many bits per byte on the average."""
    noise = np.random.default_rng(seed).normal(0, 20, (n, 1))
    nats = np.array([[champion, challenger]]) * 1000 * np.log(2) + noise
    return np.hstack([nats, np.full((n, 1), 1000.0)])


def test_old_and_new_text_count_the_same():
    found = compare_held_out(rows(2.0, 2.1, n=100), rows(4.0, 3.0, n=20))
    assert found["old"]["difference"] == pytest.approx(0.1)
    assert found["new"]["difference"] == pytest.approx(-1.0)
    assert found["difference"] == pytest.approx(-0.45)
    low, high = found["interval"]
    assert low <= found["difference"] <= high
    assert verdict(found, {}, 0.002)[0]


def test_pairs_make_the_interval_narrow():
    low, high = compare_held_out(rows(2.0, 1.9), rows(3.0, 2.9))["interval"]
    assert high - low < 0.01, "the noise of a document is the same for both models"


def test_the_same_model_is_not_better():
    found = compare_held_out(rows(2.0, 2.0), rows(3.0, 3.0))
    better, reason = verdict(found, {}, 0.0)
    assert not better
    assert "not surely better" in reason


def test_a_worse_benchmark_refuses():
    found = compare_held_out(rows(2.0, 1.5), rows(3.0, 2.5))
    right, wrong = dict.fromkeys(range(50), 1.0), dict.fromkeys(range(50), 0.0)
    mixed = {i: float(i % 2) for i in range(50)}
    assert compare_items(right, mixed)["interval"][1] < 0
    better, reason = verdict(found, {"sciq": compare_items(right, wrong)}, 0.002)
    assert not better
    assert "sciq" in reason
    assert verdict(found, {"sciq": compare_items(mixed, mixed)}, 0.002)[0]


def test_too_little_text_is_no_reason_to_promote():
    better, reason = verdict(compare_held_out(rows(2.0, 1.0), rows(3.0, 1.0, n=19)), {}, 0.002)
    assert not better
    assert "19 documents or blocks of text" in reason


@pytest.mark.parametrize("units", [0, 1])
def test_no_text_to_speak_of_is_a_verdict_too(units: int):
    held_out = compare_held_out(rows(0.7, 0.6, n=units), rows(0.7, 0.6))
    assert held_out["interval"] is held_out["difference"] is None
    better, reason = verdict(held_out, {}, 0.0)
    assert not better
    assert f"too little held-out text to judge: {units} documents" in reason
    shown = comparison_rows({"held_out": held_out, "benchmarks": {}, "benchmarks_together": None})
    assert [row["units or items"] for row in shown] == [str(units), "40", ""]


def coins(rng: np.random.Generator, n_items: int, shift: float) -> tuple[dict[int, float], dict[int, float]]:
    """Answers of two models to the same items; the second is right more often by `shift`."""
    first = rng.random(n_items) < 0.5
    flips = rng.random(n_items) < 0.2
    second = np.where(flips, rng.random(n_items) < 0.5 + shift / 0.2, first)
    return dict(enumerate(first.astype(float))), dict(enumerate(second.astype(float)))


@pytest.mark.parametrize(("n_tasks", "n_items"), [(10, 200), (67, 100)])
def test_equal_models_are_seldom_refused_whatever_the_number_of_benchmarks(n_tasks: int, n_items: int):
    """By each benchmark's own interval 22% and 82% were."""
    rng, held_out = np.random.default_rng(0), compare_held_out(rows(2.0, 1.5), rows(3.0, 2.5))
    refused, worse_found = 0, 0
    for _ in range(40):
        equal = {str(i): quick(*coins(rng, n_items, 0.0)) for i in range(n_tasks)}
        refused += not verdict(held_out, equal, 0.002)[0]
        worse = {str(i): quick(*coins(rng, n_items, -0.08)) for i in range(n_tasks)}
        worse_found += not verdict(held_out, worse, 0.002)[0]
    assert refused <= 5
    assert worse_found >= 35


def quick(champion: dict[int, float], challenger: dict[int, float]) -> dict:
    """`compare_items` without the interval that is only shown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.evaluation.intervals.bootstrap_interval", lambda data, statistic: [0.0, 0.0])
        return compare_items(champion, challenger)


def test_answers_that_are_written_count_too():
    from tasks.evaluation.evaluate_model import _item

    sample = {
        "doc_id": 0,
        "target": "7",
        "arguments": [("Question",)],
        "filtered_resps": ["7"],
        "exact_match": 1.0,
    }
    assert _item("t", sample)["correct"] == 1.0


def test_other_items_are_an_error():
    with pytest.raises(StageFailed, match="different benchmark items"):
        compare_items({0: 1.0}, {1: 1.0})


def test_the_champion_has_a_history(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(InputError, match="nothing to roll back to"):
        roll_back(store, "demo", "no reason")
    promote_model(store, "demo", "a", "the first", former=None)
    promote_model(store, "demo", "b", "better", former="a")
    refuse_model(store, "demo", "c", "worse")
    with pytest.raises(InputError, match="the champion of 'demo' is b now"):
        promote_model(store, "demo", "d", "better than a", former="a")
    assert read_champions(store, "demo").champion == "b"
    assert roll_back(store, "demo", "it swears").champion == "a"
    assert [event.event for event in read_champions(store, "demo").history] == [
        "promoted",
        "promoted",
        "refused",
        "rolled back",
    ]
    promote_model(store, "demo", "d", "better than a", former="a")
    assert roll_back(store, "demo", "again").champion == "a"
