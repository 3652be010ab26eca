"""Margins in ulps and tie classes."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forensics.margin import in_ulps, tie_class, ulp


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [(16.0, "bfloat16", 0.125), (31.9, "torch.bfloat16", 0.125), (32.0, "bfloat16", 0.25), (16.0, "float16", 2**-6),
     (16.0, "float32", 2**-19), (0.0, "bfloat16", 0.0), (1.0, "fp8", None), (math.inf, "float32", None)],
)  # fmt: skip
def test_ulp(value: float, dtype: str, expected: float | None) -> None:
    assert ulp(value, dtype) == expected


@given(st.floats(min_value=2.0**-100, max_value=2.0**100))
def test_ulp_is_numpys_spacing_of_float32(value: float) -> None:
    exact = float(numpy.float32(value))
    assert ulp(exact, "float32") == float(numpy.spacing(numpy.float32(exact)))


def test_classes() -> None:
    assert tie_class(0.0, None) == "exact tie"
    assert tie_class(0.25, in_ulps(0.25, 20.0, "bfloat16")) == "near tie"
    assert tie_class(0.75, in_ulps(0.75, 20.0, "bfloat16")) == "clear"
    assert tie_class(0.25, in_ulps(0.25, 20.0, None)) is None
