"""Where a row of things is cut into parts: at the things themselves, so that what is added changes the parts near it only."""


class Cuts:
    """Decides after which thing a part ends.

    A part may end after a thing whose digest is below a bound that grows with the thing's size, once it has a quarter of
    the typical size; so boundaries do not depend on what lies far away.

    Args:
        typical_bytes: size that most parts come near to; none is larger than three times this, but for a part of one thing.
    """

    def __init__(self, typical_bytes: int) -> None:
        self.typical_bytes = typical_bytes
        self.size = 0

    def ends_before(self, size: int) -> bool:
        """Whether the part has to end before a thing of this size."""
        return self.size > 0 and self.size + size > 3 * self.typical_bytes

    def ends_after(self, digest: int, size: int) -> bool:
        """Take a thing into the part, by its 64-bit digest and size in bytes; whether the part ends after it."""
        self.size += size
        by_chance = digest * self.typical_bytes < (size << 64) * 4 // 3
        return by_chance and self.size >= self.typical_bytes // 4

    def begin(self) -> None:
        """Begin the next part."""
        self.size = 0
