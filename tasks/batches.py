"""Neighbours that are looked at together, as many as memory should hold."""

from collections.abc import Iterator, Sequence


def batches(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Ranges of neighbours whose sizes come to `most` together and no more, unless one alone has more; each has a line end."""
    first, total = 0, 0
    for number, size in enumerate(sizes):
        if total + size > most and number > first:
            yield range(first, number)
            first, total = number, 0
        total += size + 1
    if first < len(sizes):
        yield range(first, len(sizes))
