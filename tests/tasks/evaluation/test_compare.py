"""When a challenger is better, and what becomes of the champion."""

import numpy as np
import pytest

from flows.runs.champions import promote_model, read_champions, refuse_model, roll_back
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
    found = compare_held_out(rows(2.0, 2.1, n=100), rows(4.0, 3.0, n=10))
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
