"""A tokenizer on disk: its files, its end-of-text token, and the digest that names it."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, TOKEN_BYTES = "tokenizer.json", "token_bytes.json"
"""Beside the tokenizer: the bytes of text that each id stands for, a list of whole numbers."""

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer below `folder`; text that spells a special token stays text.

    The setting is lost when a tokenizer is saved, so it is set here, each time.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_of_text(tokenizer: "Tokenizer") -> str:
    """The special token that ends a text.

    Raises:
        InputError: if the tokenizer has none.
    """
    for name in (END_OF_TEXT, "<|end_of_text|>", "</s>"):
        if tokenizer.token_to_id(name) is not None:
            return name
    raise InputError(f"the tokenizer has none of {END_OF_TEXT}, <|end_of_text|> and </s>: take one that has")


def end_of_text_id(tokenizer: "Tokenizer") -> int:
    """Id of `end_of_text`."""
    number = tokenizer.token_to_id(end_of_text(tokenizer))
    assert number is not None
    return number


def tokenizer_sha256(folder: Path) -> str:
    """SHA-256 of the tokenizer file, which names the tokenizer."""
    return hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()
