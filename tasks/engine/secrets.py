"""Secrets stay in the environment: their values are struck out of whatever is written."""

import os
import re

_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS?|CONNECTION_URL)(_|$)")
_LEAST_LENGTH = 8
"""A shorter value would strike out ordinary words."""


def secret_values() -> dict[str, str]:
    """Values of the environment variables that hold secrets by their name; value -> name."""
    named = {name: value for name, value in os.environ.items() if _NAME.search(name.upper())}
    values = {value: name for name, value in named.items() if len(value) >= _LEAST_LENGTH}
    return dict(sorted(values.items(), key=lambda item: -len(item[0])))


def redact(text: str) -> str:
    """`text` with the name of the variable in place of each secret value."""
    for value, name in secret_values().items():
        text = text.replace(value, f"[{name}]")
    return text
