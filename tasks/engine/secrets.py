"""Secrets stay in the environment: their values are struck out of whatever is written."""

import base64
import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote, quote_plus, urlsplit

_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|APIKEY|PRIVATEKEY|CREDENTIAL)S?(_|$)|(^|_)(KEY|PAT|AUTH|PASS|PASSPHRASE|DSN)(_|$)"
)
_WITH_PASSWORD = re.compile(r"^[a-zA-Z][\w+.-]*://[^/\s@]*:[^/\s@]+@")
"""An address such as DATABASE_URL's, whatever the variable is called."""

_LEAST_LENGTH, _LEAST_LENGTH_OF_A_BLOCK = 8, 4
"""A shorter value would strike out ordinary words."""

BLOCKS_VARIABLE = "SCRATCHLM_SECRETS"
"""Names, with commas, of the variables whose values came from Secret blocks."""


def is_secret_name(variable: str) -> bool:
    """Whether an environment variable holds a secret by its name."""
    return bool(_NAME.search(variable.upper()))


def set_secret(variable: str, value: str) -> None:
    """Put a secret into the environment of this process and of its children, all of which strike it out."""
    names = {variable, *os.environ.get(BLOCKS_VARIABLE, "").split(",")} - {""}
    os.environ.update({variable: value, BLOCKS_VARIABLE: ",".join(sorted(names))})


def secret_values() -> dict[str, str]:
    """Values of the environment variables that hold secrets; value -> name, the longest first."""
    from_blocks = set(os.environ.get(BLOCKS_VARIABLE, "").split(","))
    values: dict[str, str] = {}
    for name, value in os.environ.items():
        if name in from_blocks and len(value) >= _LEAST_LENGTH_OF_A_BLOCK:
            values[value] = name
        elif len(value) >= _LEAST_LENGTH:
            if is_secret_name(name):
                values[value] = name
            elif _WITH_PASSWORD.match(value):
                values[value] = name
                values[urlsplit(value).password or value] = name
    return dict(sorted(values.items(), key=lambda item: -len(item[0])))


def _base64_parts(value: bytes) -> Iterator[str]:
    """What any base64 of a text that contains `value` contains: its three alignments, without what neighbours decide."""
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + value)
        whole = encoded[-(-offset * 8 // 6) : len(encoded) - (4 if (offset + len(value)) % 3 else 0)]
        yield whole.decode()
        yield whole.replace(b"+", b"-").replace(b"/", b"_").decode()


@lru_cache(maxsize=64)
def _forms(value: str) -> tuple[str, ...]:
    """The ways in which a secret may be written: as it is, line by line, in JSON, in a URL, in base64."""
    lines = [line.strip() for line in value.splitlines() if not line.startswith("-----")]
    plain = {value, *(line for line in lines if len(line) >= _LEAST_LENGTH)}
    escaped = {json.dumps(text)[1:-1] for text in plain} | {
        json.dumps(text, ensure_ascii=False)[1:-1] for text in plain
    }
    urls = {quote(text, safe="") for text in plain} | {quote_plus(text) for text in plain}
    encoded = {part for text in plain for part in _base64_parts(text.encode()) if len(part) >= _LEAST_LENGTH}
    return tuple(sorted(plain | escaped | urls | encoded, key=len, reverse=True))


def redact(text: str) -> str:
    """`text` with the name of the variable in place of each secret value."""
    for value, name in secret_values().items():
        for form in _forms(value):
            text = text.replace(form, f"[{name}]")
    return text
