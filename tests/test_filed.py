"""What reports say of the neighbours that a verdict names."""

from __future__ import annotations

from typing import Any

import pytest

from forensics.filed import parse

BASE = {"arm": "incident", "of": 21, "fewest": ["n1"], "carry": "bits", "minimal": True, "removed": "incident",
        "contents": "recorded", "contents_matter": False, "detail": "d"}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says", "not_says"),
    [
        ({}, ["1 of 21 other requests are enough for the incident's bits: n1;", "others carry the difference as well",
              "what the others say changes no bit"], ["fewer might do"]),
        ({"removed": "reference"}, ["without, the reference's bits come out"], ["as well"]),
        ({"removed": "neither"}, ["neither arm's bits"], []),
        ({"removed": None}, ["is not known"], []),
        ({"minimal": False, "fewest": list("abcde")}, ["a, b, c and 2 more (fewer might do)"], []),
        ({"carry": "token"}, ["token, though not for its bits"], []),
        ({"contents_matter": True}, ["changes the bits"], ["changes no bit"]),
        ({"contents": "random", "contents_matter": None}, ["ids were withheld"], ["changes"]),
        ({"fewest": 7, "of": {}, "arm": None}, ["0 of {}"], []),
    ],
)  # fmt: skip
def test_who_carries_the_difference(changes: dict[str, Any], says: list[str], not_says: list[str]) -> None:
    said = " ".join(parse({"neighbours": BASE | changes}, "v.json").findings)
    assert all(part in said for part in says), said
    assert not any(part in said for part in not_says), said


def test_without_them_nothing_is_said() -> None:
    assert parse({"neighbours": None}, "v.json").findings == ()
