"""Canonical values and digests."""

import json
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from model.base_config import Config
from tasks.engine.keys import LOCATION, KeyMaterialError, canonical, digest

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_digest_survives_json_and_order(value):
    assert digest(json.loads(json.dumps(value))) == digest(value)
    if isinstance(value, dict):
        assert digest(dict(reversed(value.items()))) == digest(value)


@given(values, values)
def test_digests_differ_where_values_differ(a, b):
    same = json.dumps(canonical(a), sort_keys=True) == json.dumps(canonical(b), sort_keys=True)
    assert (digest(a) == digest(b)) == same


class Word(StrEnum):
    ONE = "one"


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {1, 2},
        Path("/tmp"),
        len,
        object(),
        b"bytes",
        {1: "a"},
        Word.ONE,
        [1, {"a": lambda: 0}],
    ],
)
def test_what_has_no_canonical_form_is_an_error(value):
    with pytest.raises(KeyMaterialError):
        digest(value)


def test_the_error_names_the_place():
    with pytest.raises(KeyMaterialError, match=r"stage\.a\[1\]"):
        canonical({"a": [1, {1, 2}]}, "stage")


class Place(Config):
    path: str = Field(json_schema_extra=LOCATION)
    name: str = "x"


def test_locations_enter_no_key():
    assert digest(Place(path="/a")) == digest(Place(path="/b"))
    assert digest(Place(path="/a")) != digest(Place(path="/a", name="y"))


def test_digest_is_the_same_in_another_process():
    code = "from tasks.engine.keys import digest; print(digest({'b': [1.5, None], 'a': 'ü'}))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert printed == {digest({"a": "ü", "b": [1.5, None]})}
