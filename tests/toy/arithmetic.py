"""What the toy stages import."""


def multiply(number: int, factor: int) -> int:
    """The product."""
    return number * factor  # a comment
