"""How much of the logits of a batch exists together."""

_LOGITS_BYTES = {"cpu": 32 * 2**20, "cuda": 2**30}
"""In float32: the head works through a batch in chunks of so many rows. On a GPU each chunk reads and writes the gradient of the
head, so that short ones would bound the speed by memory."""


def head_rows(vocabulary_size: int, device: str) -> int:
    """Positions whose logits exist together on a device, cpu or cuda."""
    return max(64, _LOGITS_BYTES.get(device, 2**28) // (4 * vocabulary_size))
