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

    `p_worse` is that of the exact sign test (Dixon and Mood 1946): how often an equal challenger would lose at least
    as many of the items on which the two differ.

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
        "standard_error": float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else 0.0,
        "interval": interval,
        "p_worse": _p_worse(int((gains < 0).sum()), int((gains > 0).sum())),
    }


def _p_worse(losses: int, wins: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(losses, losses + wins, 0.5, "greater").pvalue) if losses + wins else 1.0


def pool(benchmarks: dict[str, Any]) -> dict[str, Any] | None:
    """Mean difference over benchmarks, each of which counts the same, with its 95% interval; None if there is none.

    Items are drawn apart in each, so the variance of the mean is that of stratified sampling (Cochran 1977, section 5.3).
    """
    if not benchmarks:
        return None
    n = len(benchmarks)
    difference = sum(of["difference"] for of in benchmarks.values()) / n
    error = sum(of["standard_error"] ** 2 for of in benchmarks.values()) ** 0.5 / n
    return {
        "tasks": n,
        "difference": difference,
        "standard_error": error,
        "interval": [difference - 1.96 * error, difference + 1.96 * error],
    }


def surely_worse(benchmarks: dict[str, Any], level: float = 0.025) -> list[str]:
    """Benchmarks on which the challenger is worse, at a family-wise level (Holm 1979)."""
    worse = []
    ordered = sorted(benchmarks.items(), key=lambda item: item[1]["p_worse"])
    for i, (name, of) in enumerate(ordered):
        if of["p_worse"] > level / (len(ordered) - i):
            break
        worse.append(name)
    return worse
