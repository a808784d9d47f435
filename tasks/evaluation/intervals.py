"""Intervals of differences: whether one model is better than another, item by item."""

from collections.abc import Callable
from typing import Any

from model.errors import StageFailed

CONFIDENCE = 0.95
_RESAMPLES, _SEED = 9999, 0


def bootstrap_interval(data: tuple[Any, ...], statistic: Callable[..., Any]) -> list[float]:
    """95% percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13); samples are drawn apart."""
    from scipy.stats import bootstrap

    resampled = bootstrap(
        data,
        statistic,
        n_resamples=_RESAMPLES,
        batch=500,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=_SEED,
    )
    return [float(resampled.confidence_interval.low), float(resampled.confidence_interval.high)]


def compare_items(champion: dict[int, float], challenger: dict[int, float]) -> dict[str, Any]:
    """Difference in accuracy on the same items, challenger minus champion, with its paired bootstrap interval.

    Raises:
        StageFailed: if the items are not the same.
    """
    import numpy as np

    if champion.keys() != challenger.keys():
        raise StageFailed("champion and challenger answered different benchmark items")
    pairs = np.array([(champion[item], challenger[item]) for item in sorted(champion)], np.float64)
    gains = pairs[:, 1] - pairs[:, 0]
    constant = bool(np.all(gains == gains[0]))
    interval = (
        [float(gains[0])] * 2
        if constant
        else bootstrap_interval((gains,), lambda rows, axis: rows.mean(axis))
    )
    return {
        "items": len(pairs),
        "champion": float(pairs[:, 0].mean()),
        "challenger": float(pairs[:, 1].mean()),
        "difference": float(gains.mean()),
        "interval": interval,
    }
