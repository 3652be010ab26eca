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


def patched(operator: str, layers: list[int], share: float | None, token: str = "reference") -> dict:
    return {"operator": operator, "layers": layers, "share": share, "token": token}


LOCALISED = {
    "at": 21, "operators": 23, "equal": 5, "first": "layers.0.attention", "null_holds": True, "detail": "",
    "origins": [patched("attention", [0, 1], 1.0), patched("down", [1], 0.2, "incident")],
    "relays": [patched("o", [0], -0.2), patched("gate", [1], 1.3)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ["5 of 23 operators give equal bits in pass 21; the first that does not is layers.0.attention",
              "still give other bits: attention of layers 0, 1, down of layer 1",
              "attention of layers 0, 1 100% (the reference's token), down of layer 1 20% (the incident's token)",
              "2 that only pass it on: -20% to 130%"]),
        ({"first": "layers.0.v"}, ["(layers.0.v) is not what counts most: attention of layers 0, 1 restores 100%"]),
        ({"origins": [patched("lm_head", [], None)]}, ["contrast is the same in both arms", "lm_head gives the ref"]),
        ({"first": None, "detail": "no cache"}, ["which operator: open (no cache)"]),
        ({"null_holds": False}, ["changed bits: nothing of this can be relied on"]),
        ({"detail": "not all was tried"}, ["not all was tried"]),
        ({"origins": [3], "relays": "x"}, ["none that could be tried"]),
    ],
)  # fmt: skip
def test_a_localised_difference_in_words(changes, says):
    found = parse({"localised": LOCALISED | changes}, "v.json").findings
    said = " ".join(found)
    assert all(one in said for one in says), said
    if not changes:
        assert "not what counts most" not in said
        assert "relied on" not in said


ARBITER = {"answer": "undecidable", "margin": -0.0056, "floor": 0.59, "float32_floor": 9e-6, "dtype": "bfloat16",
           "prefers": "reference", "detail": "",
           "layers": [{"float64": 0.8}, {"float64": -0.1}, {"float64": -0.0056}]}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ["undecidable at this precision, bfloat16 can give either", "the reference's token 0.0056 logits ahead",
              "in bfloat16 can move that by 0.59, in fp32 by 9e-06", "ahead from layer 1 on"]),
        ({"answer": "incident_wrong"}, ["who is right: the incident is wrong;"]),
        ({"margin": 0.5, "answer": "reference_wrong"}, ["the reference is wrong; float64 has the incident's"]),
        ({"margin": None, "detail": "no flip"}, ["who is right: open (no flip)"]),
        ({"detail": "a third"}, ["a third"]),
        ({"layers": [7]}, ["logits ahead"]),
    ],
)  # fmt: skip
def test_who_is_right_in_words(changes, says):
    said = " ".join(parse({"arbiter": ARBITER | changes}, "v.json").findings)
    assert all(one in said for one in says), said


@pytest.mark.parametrize(
    ("part", "answered"), [(ARBITER, True), ({"answer": "open"}, False), (None, False), (7, False)]
)
def test_which_output_is_right_counts_as_asked_only_with_an_answer(part, answered):
    assert parse({"arbiter": part}, "v.json").arbitrated is answered
