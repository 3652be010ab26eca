"""The canonical JSON of the standard library's recorder is that of the library which the store uses."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from forensics.values import canonical
from replay.canonical import LARGEST_INTEGER, canonical_json, canonical_sha256, text_sha256

SCALARS = (
    st.none()
    | st.booleans()
    | st.text()
    | st.integers(-LARGEST_INTEGER, LARGEST_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(VALUES)
def test_it_is_rfc_8785(value: Any) -> None:
    assert canonical_json(value).encode() == rfc8785.dumps(value)


@pytest.mark.parametrize(
    "value", [1e-6, 9.5e-7, 1e-7, 1e20, 1e21, 1.5e300, 0.1, -0.0, 100.0, 5e-324, 1.2345678901234568e20]
)
def test_numbers_as_ecmascript_writes_them(value: float) -> None:
    assert canonical_json(value).encode() == rfc8785.dumps(value)


def test_large_integers_are_those_of_the_store() -> None:
    for value in (LARGEST_INTEGER, LARGEST_INTEGER + 1, -(2**63)):
        assert canonical_json([value]).encode() == canonical([value])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError, match="no JSON value"):
        canonical_json({"a": {1, 2}})


def test_hashes_are_over_utf_8() -> None:
    assert text_sha256("función") == hashlib.sha256("función".encode()).hexdigest()
    assert canonical_sha256({"b": 1, "a": "ó"}) == hashlib.sha256('{"a":"ó","b":1}'.encode()).hexdigest()
    assert len(text_sha256("\ud800")) == 64, "half a pair, as some clients send"
