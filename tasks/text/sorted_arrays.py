"""Sorted arrays of numpy, which is imported where it is used."""

from typing import Any


def are_among(values: Any, known: Any) -> Any:
    """Which of some values are in a sorted array: bool (values,)."""
    import numpy as np

    values = np.asarray(values, known.dtype)
    if not len(known):
        return np.zeros(len(values), bool)
    return known[np.searchsorted(known, values).clip(max=len(known) - 1)] == values
