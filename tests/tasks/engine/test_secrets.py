"""Secrets are struck out, under whatever name and in whatever writing."""

import base64
import json
import os
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.engine.secrets import is_secret_name, redact, set_secret

CANARY = "c4n/ry+Secret-öne=="


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "PGPASSWORD",
        "OPENAI_APIKEY",
        "GH_PAT",
        "WANDB_AUTH",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "GOOGLE_CREDENTIALS",
        "PREFECT_API_AUTH_STRING",
        "SENTRY_DSN",
    ],
)
def test_names_of_secrets(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, CANARY)
    assert redact(f"it is {CANARY}.") == f"it is [{name}]."


@pytest.mark.parametrize(
    "name", ["PATH", "PWD", "HOME", "PYTHONPATH", "LD_PRELOAD", "KEYBOARD", "TOKENIZERS_PARALLELISM"]
)
def test_names_that_are_none(name: str):
    assert not is_secret_name(name)


def test_an_address_with_a_password_is_one_under_any_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHERE", f"postgresql+asyncpg://me:{quote(CANARY, safe='')}@host/database")
    assert CANARY not in redact(os.environ["WHERE"])
    assert quote(CANARY, safe="") not in redact(f"connecting with {quote(CANARY, safe='')}")


WRITINGS = {
    "plain": str,
    "JSON": json.dumps,
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
    "URL": lambda text: quote(text, safe=""),
    "form": quote_plus,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 after a name": lambda text: base64.b64encode(b"user:" + text.encode() + b":more").decode(),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(b"x" + text.encode()).decode(),
}


@given(secret=st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=12, max_size=40))
@pytest.mark.parametrize("writing", WRITINGS)
def test_however_it_is_written(writing: str, secret: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUB_TOKEN", secret)
        written = WRITINGS[writing](secret)
        left = redact(f"a {written} b")
    assert written not in left
    assert "[HUB_TOKEN]" in left


def test_a_key_of_several_lines_printed_line_by_line(monkeypatch: pytest.MonkeyPatch):
    lines = ["MIIEvQIBADANBgkqh", "kiG9w0BAQEFAASCBK", "cwggSjAgEAAoIBAQC7"]
    monkeypatch.setenv("SSH_PRIVATE_KEY", "\n".join(["-----BEGIN KEY-----", *lines, "-----END KEY-----"]))
    for line in lines:
        assert line not in redact(f"read {line} next")
    assert redact("-----BEGIN KEY-----") == "-----BEGIN KEY-----"


def test_what_comes_from_a_block_is_one_whatever_its_length(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCRATCHLM_SECRETS", "")
    monkeypatch.setenv("HF_TOKEN", "")
    set_secret("HF_TOKEN", "s3cr3")
    assert redact("it is s3cr3") == "it is [HF_TOKEN]"
