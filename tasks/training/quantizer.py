"""The library that holds a frozen base in four bits: it is in the keys of those alone that use it."""

from typing import Literal

from tasks.engine.resolve import library_version


def quantizer_version(base: Literal["full", "nf4"]) -> dict[str, str]:
    """Version of what a base that is held in this way is made by.

    Raises:
        InputError: if it is not installed.
    """
    return {"bitsandbytes": library_version("bitsandbytes")} if base == "nf4" else {}
